// A little markdown as elements: what a model says never becomes HTML, links or images.
import type { ComponentChildren } from "preact";

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*)/;

function inline(text: string): ComponentChildren[] {
  return text.split(INLINE).map((part, index) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return <code key={index}>{part.slice(1, -1)}</code>;
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return <strong key={index}>{part.slice(2, -2)}</strong>;
    if (part.length > 2 && INLINE.test(part) && part.startsWith("*")) return <em key={index}>{part.slice(1, -1)}</em>;
    return part;
  });
}

function paragraph(text: string, index: number) {
  const lines = text.split("\n");
  const heading = /^#{1,6}\s+(.*)$/.exec(lines[0] ?? "");
  if (heading && lines.length === 1) return <p key={index} class="said-heading">{inline(heading[1] ?? "")}</p>;
  if (lines.every((line) => /^\s*[-*•]\s+/.test(line))) {
    return <ul key={index}>{lines.map((line, at) => <li key={at}>{inline(line.replace(/^\s*[-*•]\s+/, ""))}</li>)}</ul>;
  }
  if (lines.every((line) => /^\s*\d+[.)]\s+/.test(line))) {
    return <ol key={index}>{lines.map((line, at) => <li key={at}>{inline(line.replace(/^\s*\d+[.)]\s+/, ""))}</li>)}</ol>;
  }
  return <p key={index}>{lines.flatMap((line, at) => (at === 0 ? inline(line) : [<br key={`br${at}`} />, ...inline(line)]))}</p>;
}

export function Markdown({ text }: { text: string }) {
  const parts = text.split(/^```[^\n]*\n?/m);
  return (
    <>
      {parts.map((part, index) => (index % 2 === 1
        ? <pre key={index} tabIndex={0}><code>{part}</code></pre>
        : <div key={index}>{part.split(/\n{2,}/).filter((one) => one.trim() !== "").map((one, at) => paragraph(one.trim(), at))}</div>))}
    </>
  );
}
