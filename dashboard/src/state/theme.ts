// Light, dark, or as the system has it; kept in this browser, where it says nothing about anybody.
import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const KEPT = "brigade-theme";
const ORDER: Theme[] = ["system", "light", "dark"];

function kept(): Theme {
  const found = localStorage.getItem(KEPT) as Theme | null;
  return found !== null && ORDER.includes(found) ? found : "system";
}

export const theme = signal<Theme>(kept());
const system = matchMedia("(prefers-color-scheme: dark)");
const isSystemDark = signal(system.matches);
system.addEventListener("change", (change) => {
  isSystemDark.value = change.matches;
});

/** What is shown; read it where a canvas takes its colours from the page. */
export const shownTheme = signal<"light" | "dark">("light");

effect(() => {
  const isDark = theme.value === "dark" || (theme.value === "system" && isSystemDark.value);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  shownTheme.value = isDark ? "dark" : "light";
});

export function nextTheme(): void {
  theme.value = ORDER[(ORDER.indexOf(theme.value) + 1) % ORDER.length] ?? "system";
  localStorage.setItem(KEPT, theme.value);
}
