// Which page is shown: the hash of the address, so that links, the back button and reloading work.
import { computed, signal } from "@preact/signals";

const hash = signal(location.hash);
addEventListener("hashchange", () => {
  hash.value = location.hash;
});

/** As it stands where it isn't rightly encoded: addresses are typed by hand and shortened by mail programs. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** `#/workers/abc?x=1` is `["workers", "abc"]`. */
export const path = computed(() => {
  const [places = ""] = hash.value.replace(/^#\/?/, "").split("?");
  return places.split("/").filter(Boolean).map(decoded);
});

export function link(...places: string[]): string {
  return `#/${places.map(encodeURIComponent).join("/")}`;
}

export function go(...places: string[]): void {
  location.hash = link(...places);
}
