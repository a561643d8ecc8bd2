// A list of which only the rows in sight exist: a thousand workers cost what thirty do.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

const SPARE_ROWS = 6;

export function VirtualList(
  { n, rowHeight, maxHeight, row, rowKey, label }:
  {
    n: number; rowHeight: number; maxHeight: number; label: string;
    row: (index: number) => ComponentChildren; rowKey: (index: number) => string;
  },
) {
  const frame = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const asked = useRef(0);
  const height = Math.min(maxHeight, n * rowHeight);
  useLayoutEffect(() => () => cancelAnimationFrame(asked.current), []);
  const scrolled = () => {
    cancelAnimationFrame(asked.current);
    asked.current = requestAnimationFrame(() => setTop(frame.current?.scrollTop ?? 0));
  };
  const first = Math.max(0, Math.floor(Math.min(top, n * rowHeight - height) / rowHeight) - SPARE_ROWS);
  const last = Math.min(n, first + Math.ceil(height / rowHeight) + 2 * SPARE_ROWS);
  const rows: ComponentChildren[] = [];
  for (let index = first; index < last; index++) rows.push(<div role="listitem" key={rowKey(index)}>{row(index)}</div>);
  return (
    <div class="virtual" ref={frame} onScroll={scrolled} style={{ height: `${height}px` }} tabIndex={0}
      role="list" aria-label={label}>
      <div class="virtual-whole" role="presentation" style={{ height: `${n * rowHeight}px` }}>
        <div class="virtual-part" role="presentation" style={{ transform: `translateY(${first * rowHeight}px)` }}>{rows}</div>
      </div>
    </div>
  );
}
