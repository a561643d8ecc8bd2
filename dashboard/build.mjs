// Builds coordinator/dashboard/assets from src: one script, one style, an icon and index.html, each with its hash in
// its name, and each compressed beside it. `sources.json` says of which sources, so that a test sees what is stale.
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { build } from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const ASSETS = join(HERE, "..", "coordinator", "dashboard", "assets");
const SERVED_AT = "/dashboard/assets/";
const BESIDE_SRC = ["build.mjs", "package-lock.json", "package.json", "tsconfig.json"];
const HASH_CHARS = 12;
/** Smaller ones don't get smaller. */
const MIN_COMPRESSED = 200;

const sha256 = (data) => createHash("sha256").update(data).digest("hex");

/** Of all sources, by path: as tests/dashboard/test_assets.py makes it. */
async function sourcesHash() {
  const found = await readdir(join(HERE, "src"), { recursive: true, withFileTypes: true });
  const inSrc = found.filter((one) => one.isFile()).map((one) => join(one.parentPath, one.name).slice(HERE.length + 1));
  const whole = createHash("sha256");
  for (const path of [...BESIDE_SRC, ...inSrc].sort()) whole.update(`${path} ${sha256(await readFile(join(HERE, path)))}\n`);
  return whole.digest("hex");
}

async function write(name, data) {
  await writeFile(join(ASSETS, name), data);
  if (data.length < MIN_COMPRESSED) return;
  await writeFile(join(ASSETS, `${name}.gz`), gzipSync(data, { level: 9 }));
  const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: data.length };
  await writeFile(join(ASSETS, `${name}.br`), brotliCompressSync(data, { params }));
}

async function writeHashed(stem, extension, data) {
  const name = `${stem}-${sha256(data).slice(0, HASH_CHARS)}.${extension}`;
  await write(name, data);
  return SERVED_AT + name;
}

const made = await build({
  entryPoints: [join(HERE, "src", "main.tsx"), join(HERE, "src", "style.css")],
  absWorkingDir: HERE,
  outdir: "out",
  bundle: true,
  minify: true,
  write: false,
  format: "esm",
  target: ["chrome115", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  logLevel: "warning",
});
const built = (extension) => Buffer.from(made.outputFiles.find((file) => file.path.endsWith(extension)).contents);

await rm(ASSETS, { recursive: true, force: true });
await mkdir(ASSETS, { recursive: true });
const page = (await readFile(join(HERE, "src", "index.html"), "utf8"))
  .replace("ICON", await writeHashed("icon", "svg", await readFile(join(HERE, "src", "icon.svg"))))
  .replace("STYLE", await writeHashed("style", "css", built(".css")))
  .replace("SCRIPT", await writeHashed("app", "js", built(".js")));
await write("index.html", Buffer.from(page));
await writeFile(join(ASSETS, "sources.json"), `${JSON.stringify({ sources_sha256: await sourcesHash() })}\n`);
