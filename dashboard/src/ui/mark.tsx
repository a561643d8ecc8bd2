// The mark: buckets handed on.

export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" />
      <path d="M7 12h5l-.8 8H7.8zM13.500 12h5l-.8 8h-3.400zM20 12h5l-.8 8h-3.400z" />
    </svg>
  );
}
