// A map after a delta: null means gone, a known entry's fields are overwritten, a new entry comes whole.

export function replaced<Entry>(
  known: ReadonlyMap<string, Entry>, changes: Record<string, Partial<Entry> | null>,
): ReadonlyMap<string, Entry> {
  const next = new Map(known);
  for (const [id, change] of Object.entries(changes)) {
    if (change === null) next.delete(id);
    else next.set(id, { ...(next.get(id) as Entry), ...change });
  }
  return next;
}
