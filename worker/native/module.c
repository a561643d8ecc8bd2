/* The module `worker.cpu_kernels`: kernels for processors with AVX2 and FMA, told addresses and sizes. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "attention.h"
#include "products.h"
#include "rows.h"

#if HAS_KERNELS

#include <cpuid.h>
#include <stdlib.h>

static PyObject *done(int result)
{
    if (result < 0)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Whether none of the addresses is 0, as those of tensors without memory; if not, with an exception. */
static int are_places(const void *one, const void *other, const void *third, Py_ssize_t n_rows)
{
    if (!n_rows || (one && other && third))
        return 1;
    PyErr_SetString(PyExc_ValueError, "a tensor without memory");
    return 0;
}

static PyObject *py_multiply(PyObject *Py_UNUSED(module), PyObject *args)
{
    Rows rows;
    Py_ssize_t x, bias, result, panels;
    int kind, weights_kind, status;
    if (!PyArg_ParseTuple(args, "nnnnnnniii", &x, &bias, &result, &rows.n_inputs, &rows.n_rows, &rows.n_columns,
                          &panels, &kind, &weights_kind, &rows.n_threads))
        return NULL;
    rows.x = (const void *)x, rows.bias = (const void *)bias, rows.result = (void *)result;
    rows.kind = (enum kind)kind;
    if (!are_places(rows.x, rows.result, (const void *)panels, rows.n_inputs))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = multiply_plain(&rows, (const char *)panels, (enum kind)weights_kind);
    Py_END_ALLOW_THREADS return done(status);
}

static PyObject *py_multiply_coded(PyObject *Py_UNUSED(module), PyObject *args)
{
    Rows rows;
    Matrix matrix = {0};
    Py_ssize_t x, bias, result, panels, scales, zeros;
    int kind, scales_kind, n_bits, status;
    if (!PyArg_ParseTuple(args, "nnnnnnnnniiiii", &x, &bias, &result, &rows.n_inputs, &rows.n_rows, &rows.n_columns,
                          &panels, &scales, &zeros, &kind, &scales_kind, &n_bits, &matrix.zero_code,
                          &rows.n_threads))
        return NULL;
    rows.x = (const void *)x, rows.bias = (const void *)bias, rows.result = (void *)result;
    rows.kind = (enum kind)kind;
    matrix.panels = (const char *)panels, matrix.kind = (enum kind)scales_kind;
    matrix.scales = (const uint16_t *)scales, matrix.zeros = (const uint16_t *)zeros;
    if (!are_places(rows.x, rows.result, (const void *)panels, rows.n_inputs))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = multiply_coded(&rows, matrix, n_bits);
    Py_END_ALLOW_THREADS return done(status);
}

/* From a tuple for each session: addresses of keys and values, strides in bytes, positions. NULL with an exception. */
static Kept *kept_of(PyObject *sessions, Py_ssize_t *n_sessions)
{
    PyObject *all = PySequence_Fast(sessions, "sessions must be a sequence");
    if (!all)
        return NULL;
    *n_sessions = PySequence_Fast_GET_SIZE(all);
    Kept *kept = malloc((size_t)*n_sessions * sizeof *kept + 1);
    for (Py_ssize_t i = 0; kept && i < *n_sessions; i++) {
        Py_ssize_t keys, values;
        Kept *one = kept + i;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(all, i), "nnnnnnn", &keys, &values, &one->keys_by_head,
                              &one->keys_by_position, &one->values_by_head, &one->values_by_position,
                              &one->n_positions) ||
            !are_places((const void *)keys, (const void *)values, (const void *)keys, one->n_positions)) {
            free(kept);
            Py_DECREF(all);
            return NULL;
        }
        one->keys = (const char *)keys, one->values = (const char *)values;
    }
    Py_DECREF(all);
    if (!kept)
        PyErr_NoMemory();
    return kept;
}

static PyObject *py_attend(PyObject *Py_UNUSED(module), PyObject *args)
{
    Attention attention;
    PyObject *sessions;
    Py_ssize_t queries, result;
    int kind, status;
    if (!PyArg_ParseTuple(args, "nnnnnnnnfiiO", &queries, &attention.by_session, &attention.by_head, &result,
                          &attention.n_heads, &attention.n_key_heads, &attention.width, &attention.value_width,
                          &attention.scaling, &kind, &attention.n_threads, &sessions))
        return NULL;
    Kept *kept = kept_of(sessions, &attention.n_sessions);
    if (!kept)
        return NULL;
    attention.queries = (const char *)queries, attention.result = (void *)result, attention.kept = kept;
    attention.kind = (enum kind)kind;
    if (!are_places(attention.queries, attention.result, attention.result, attention.n_sessions)) {
        free(kept);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS status = attend(&attention);
    Py_END_ALLOW_THREADS free(kept);
    return done(status);
}

static PyObject *py_norm(PyObject *Py_UNUSED(module), PyObject *args)
{
    Norm norm;
    Py_ssize_t x, scale, result;
    int kind;
    if (!PyArg_ParseTuple(args, "nnnnnfii", &x, &scale, &result, &norm.n_rows, &norm.width, &norm.eps, &kind,
                          &norm.n_threads))
        return NULL;
    norm.x = (const char *)x, norm.scale = (const char *)scale, norm.result = (char *)result;
    norm.kind = (enum kind)kind;
    if (!are_places(norm.x, norm.scale, norm.result, norm.n_rows))
        return NULL;
    Py_BEGIN_ALLOW_THREADS norm_rows(&norm);
    Py_END_ALLOW_THREADS return done(0);
}

static PyObject *py_rotate(PyObject *Py_UNUSED(module), PyObject *args)
{
    Rotation rotation;
    Py_ssize_t x, cos, sin, result;
    int kind;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnni", &x, &cos, &sin, &result, &rotation.n_heads, &rotation.n_positions,
                          &rotation.width, &rotation.x_by_head, &rotation.x_by_position, &rotation.result_by_head,
                          &rotation.result_by_position, &kind))
        return NULL;
    rotation.x = (const char *)x, rotation.result = (char *)result;
    rotation.cos = (const char *)cos, rotation.sin = (const char *)sin;
    rotation.kind = (enum kind)kind;
    if (!are_places(rotation.x, rotation.cos, rotation.sin, rotation.n_positions))
        return NULL;
    rotate(&rotation);
    Py_RETURN_NONE;
}

static PyObject *py_keep(PyObject *Py_UNUSED(module), PyObject *args)
{
    Keeping keeping;
    PyObject *sessions;
    Py_ssize_t keys, values;
    if (!PyArg_ParseTuple(args, "nnnnnnnnO!", &keys, &values, &keeping.keys_by_head, &keeping.keys_by_session,
                          &keeping.values_by_head, &keeping.values_by_session, &keeping.n_heads, &keeping.width_bytes,
                          &PyList_Type, &sessions))
        return NULL;
    Py_ssize_t n_sessions = PyList_GET_SIZE(sessions);
    Room *rooms = malloc((size_t)n_sessions * sizeof *rooms + 1);
    if (!rooms)
        return PyErr_NoMemory();
    keeping.keys = (const char *)keys, keeping.values = (const char *)values;
    keeping.rooms = rooms, keeping.n_sessions = n_sessions;
    int is_good = are_places(keeping.keys, keeping.values, keeping.keys, n_sessions);
    for (Py_ssize_t i = 0; is_good && i < n_sessions; i++) {
        Py_ssize_t place, capacity;
        Room *room = rooms + i;
        is_good = PyArg_ParseTuple(PyList_GET_ITEM(sessions, i), "nnn", &place, &capacity, &room->position) &&
                  are_places((const void *)place, keeping.keys, keeping.keys, 1);
        if (!is_good)
            break;
        room->keys = (char *)place;
        room->by_position = keeping.width_bytes;
        room->by_head = capacity * keeping.width_bytes;
        room->to_values = keeping.n_heads * room->by_head;
    }
    if (is_good)
        keep(&keeping);
    free(rooms);
    return is_good ? done(0) : NULL;
}

static int is_supported(void)
{
    unsigned int a, b, c = 0, d; /* not every compiler knows "f16c" by name */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C);
}

static PyMethodDef methods[] = {
    {"multiply", py_multiply, METH_VARARGS, NULL},
    {"multiply_coded", py_multiply_coded, METH_VARARGS, NULL},
    {"attend", py_attend, METH_VARARGS, NULL},
    {"norm", py_norm, METH_VARARGS, NULL},
    {"rotate", py_rotate, METH_VARARGS, NULL},
    {"keep", py_keep, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#else

static int is_supported(void) { return 0; }
static PyMethodDef methods[] = {{NULL, NULL, 0, NULL}};

#endif

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "worker.cpu_kernels", NULL, -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_cpu_kernels(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddObjectRef(module, "IS_SUPPORTED", is_supported() ? Py_True : Py_False) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
