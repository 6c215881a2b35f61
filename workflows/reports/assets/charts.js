"use strict";
// Elements and charts. Texts become text nodes: nothing that a lake says is taken for markup.
const SVG = "http://www.w3.org/2000/svg";
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}
const COLOURS = ["#2a78d6", "#d9622b", "#1f9d63", "#a44ec4", "#c99700", "#d23d74", "#0c97a8", "#7a6a53",
  "#5b5bd6", "#6f9b1d"];
const colour = (i) => COLOURS[((i % COLOURS.length) + COLOURS.length) % COLOURS.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function fmt(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en");
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: 5 });
}
const plots = new Set();
// uPlot wants one x for all lines: the union of theirs, with gaps where a line has no point.
function joined(series) {
  const tables = [];
  for (const line of series) {
    const columns = [line.x, line.y];
    if (line.low && line.high) columns.push(line.high, line.low);
    tables.push(columns);
  }
  return uPlot.join(tables, tables.map((columns) => columns.map((_, i) => (i === 0 ? 0 : 1))));
}
function stackedLines(series) {
  const data = joined(series);
  const sums = new Array(data[0].length).fill(0);
  const lines = series.map((line, i) => {
    const y = data[i + 1].map((value, k) => (sums[k] += value || 0));
    return { ...line, x: data[0], y };
  });
  return lines.reverse();
}
function drawChart(block, host, options) {
  options = options || {};
  if (block.stacked) block = { ...block, series: stackedLines(block.series), stacked: false, filled: true };
  const lines = block.series.filter((line) => line.x.length);
  if (!lines.length) { host.append(el("p", { class: "note" }, "no numbers")); return null; }
  const data = joined(lines);
  const specs = [{}], bands = [], owners = [null];
  lines.forEach((line, i) => {
    const stroke = colour(line.group === null || line.group === undefined ? i : line.group);
    owners.push(i);
    specs.push({
      label: line.name, stroke: line.faint ? stroke + "55" : stroke, width: line.faint ? 1 : 1.75,
      spanGaps: true, fill: block.filled ? stroke + "66" : undefined,
      paths: line.points ? () => null : undefined,
      points: { show: line.points || line.x.length === 1, size: 6, fill: stroke },
    });
    if (line.low && line.high) {
      for (const side of ["high", "low"]) {
        owners.push(i);
        specs.push({ label: line.name + " " + side, stroke: "transparent", width: 0, spanGaps: true,
          points: { show: false }, paths: line.points ? whiskers(stroke) : undefined });
      }
      if (!line.points) bands.push({ series: [specs.length - 2, specs.length - 1], fill: stroke + "2e" });
    }
  });
  const shown = lines.map(() => true);
  // Charts of a section share their cursor; the figures are told where the pointer is.
  let pointed = false;
  const tip = el("div", { class: "tip", hidden: true });
  const box = el("div", { class: "plot", role: "img", "aria-label": block.title,
    onpointerenter: () => { pointed = true; }, onpointerleave: () => { pointed = false; tip.hidden = true; } });
  host.append(box);
  const axis = (more) => ({ stroke: () => css("--dim"), grid: { stroke: () => css("--line"), width: 1 },
    ticks: { stroke: () => css("--line") }, ...more });
  const height = options.height || 230;
  const plot = new uPlot({
    width: Math.max(box.clientWidth, 220), height, bands, series: specs,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
    // What is stacked is read from 0 on.
    scales: { x: { time: block.time, distr: block.log_x ? 3 : 1 },
      y: block.filled ? { range: (_, low, high) => [Math.min(low, 0), high > 0 ? high * 1.05 : 1] } : {} },
    legend: { show: false },
    cursor: { sync: options.sync ? { key: options.sync } : undefined, focus: { prox: options.steady ? -1 : 24 }, points: { size: 7 } },
    focus: { alpha: 0.35 },
    axes: [axis({ label: block.x_label || undefined, labelSize: 20, size: 38,
        values: block.time ? (_, ticks) => days(ticks) : (_, ticks) => ticks.map((v) => (v === null ? "" : short(v))) }),
      axis({ label: block.y_label || undefined, labelSize: 20, size: 58,
        values: (_, ticks) => ticks.map((v) => (v === null ? "" : short(v))) })],
    hooks: { setCursor: [(u) => hover(u)] },
  }, data, box);
  box.append(tip);
  plots.add(plot);
  function hover(u) {
    const k = u.cursor.idx;
    if (!pointed || k === null || k === undefined || u.cursor.left < 0) { tip.hidden = true; return; }
    tip.replaceChildren(el("b", {}, block.time ? new Date(data[0][k] * 1000).toISOString().slice(0, 19)
      : (block.x_label || "x") + " " + fmt(data[0][k])));
    let some = 0;
    for (let s = 1; s < specs.length && some < 8; s++) {
      if (specs[s].stroke === "transparent" || !shown[owners[s]] || data[s][k] === null
        || data[s][k] === undefined) continue;
      some++;
      tip.append(el("div", {}, specs[s].label + "  " + fmt(data[s][k])));
    }
    tip.hidden = !some;
    const left = u.cursor.left + 70;
    tip.style.left = Math.min(left, box.clientWidth - 150) + "px";
    tip.style.top = Math.min(u.cursor.top + 8, height - 60) + "px";
  }
  const named = lines.map((line, i) => [line, i]).filter(([line]) => !line.faint);
  if (named.length > 1 || options.legend) {
    const legend = el("div", { class: "legend" });
    named.slice(0, 24).forEach(([line, i]) => {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = colour(line.group === null || line.group === undefined ? i : line.group);
      legend.append(el("button", { type: "button", "aria-pressed": "true", onclick: (event) => {
        shown[i] = !shown[i];
        event.currentTarget.setAttribute("aria-pressed", String(shown[i]));
        owners.forEach((owner, s) => { if (owner === i) plot.setSeries(s, { show: shown[i] }); });
      } }, swatch, line.name));
    });
    if (named.length > 24) legend.append(el("span", { class: "note" }, "and " + (named.length - 24) + " more"));
    host.append(legend);
  }
  return plot;
}
function whiskers(stroke) {
  // Of marks: a bar from low to high at each, drawn with the series of its low end.
  return (u, s) => {
    const isLow = u.series[s].label.endsWith(" low");
    if (!isLow) return null;
    const path = new Path2D();
    u.data[s].forEach((low, k) => {
      const high = u.data[s - 1][k];
      if (low === null || low === undefined || high === null || high === undefined) return;
      const x = u.valToPos(u.data[0][k], "x", true);
      path.moveTo(x, u.valToPos(low, "y", true));
      path.lineTo(x, u.valToPos(high, "y", true));
    });
    u.ctx.save(); u.ctx.strokeStyle = stroke + "99"; u.ctx.lineWidth = 2; u.ctx.stroke(path); u.ctx.restore();
    return null;
  };
}
function days(ticks) {
  const within = ticks.length > 1 && ticks[ticks.length - 1] - ticks[0] < 2 * 86400;
  return ticks.map((v) => { const text = new Date(v * 1000).toISOString(); return within ? text.slice(11, 16) : text.slice(5, 10); });
}
function short(v) {
  const size = Math.abs(v);
  if (size >= 1e9) return v / 1e9 + "G";
  if (size >= 1e6) return v / 1e6 + "M";
  if (size >= 1e4) return v / 1e3 + "k";
  if (size !== 0 && size < 1e-3) return v.toExponential(0);
  return String(+v.toPrecision(6));
}
// Values with intervals below each other; the axis is wide enough for all of them.
function drawIntervals(block, host) {
  const known = (v) => v !== null && v !== undefined;
  const seen = block.rows.flatMap(([, value, low, high]) => [value, low, high]).filter(known);
  if (!seen.length) { host.append(el("p", { class: "note" }, "no numbers")); return; }
  if (block.reference) seen.push(block.reference[1]);
  const line = 26, top = 22, bottom = top + line * block.rows.length, height = bottom + 44;
  const width = Math.max(host.clientWidth || 700, 320), left = Math.min(150, width * 0.3), right = width - 90;
  const scale = axisScale(seen, false, right - 10, left + 10), x = scale.at;
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": block.title });
  for (const [text, at] of scale.ticks()) {
    root.append(svg("line", { class: "rule", x1: at, x2: at, y1: top, y2: bottom }));
    root.append(svg("text", { x: at, y: bottom + 16, "text-anchor": "middle" }, text));
  }
  root.append(svg("text", { x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, block.x_label));
  if (block.reference) {
    const at = x(block.reference[1]);
    root.append(svg("line", { class: "reference", x1: at, x2: at, y1: top, y2: bottom }));
    root.append(svg("text", { x: at, y: top - 8, "text-anchor": "middle" }, block.reference[0] + " " + fmt(block.reference[1])));
  }
  block.rows.forEach(([name, value, low, high, remark], i) => {
    const y = top + line * (i + 0.5), row = svg("g", { class: "interval" });
    const bounds = known(low) && known(high) ? " (" + fmt(low) + " to " + fmt(high) + ")" : "";
    row.append(svg("title", {}, name + " " + fmt(value) + bounds + (remark ? ", " + remark : "")));
    row.append(svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, name));
    if (bounds) row.append(svg("line", { x1: x(low), x2: x(high), y1: y, y2: y }));
    if (known(value)) row.append(svg("circle", { cx: x(value), cy: y, r: 4.5 }));
    row.append(svg("text", { x: right + 6, y: y + 4 }, remark));
    root.append(row);
  });
  host.append(el("div", { class: "scroll" }, root));
}
function drawParallel(block, host) {
  const count = block.labels.length, axes = block.axes, height = 330, top = 46, bottom = 300;
  const width = Math.max(host.clientWidth || 700, 120 * axes.length);
  const scales = axes.map(([name, values]) => axisScale(values, block.log.includes(name), top, bottom));
  const x = (i) => 60 + (i * (width - 120)) / Math.max(axes.length - 1, 1);
  const target = axes.findIndex(([name]) => name === block.target);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": block.title });
  const brushes = axes.map(() => null);
  const told = el("p", { class: "note", "aria-live": "polite" });
  const lines = [];
  for (let k = 0; k < count; k++) {
    const points = axes.map(([, values], i) => [x(i), scales[i].at(values[k])]).filter(([, y]) => y !== null);
    const share = target < 0 ? 0.5 : scales[target].share(axes[target][1][k]);
    const line = svg("polyline", { class: "trial", points: points.map((p) => p.join(",")).join(" ") });
    line.style.stroke = share === null ? css("--dim") : `hsl(${Math.round(260 - 215 * share)} 75% 48%)`;
    line.append(svg("title", {}, block.labels[k]));
    line.addEventListener("pointerenter", () => tell(k));
    line.addEventListener("click", () => tell(k));
    lines.push(line);
    root.append(line);
  }
  axes.forEach(([name], i) => {
    root.append(svg("line", { class: "axis", x1: x(i), x2: x(i), y1: top, y2: bottom }));
    root.append(svg("text", { x: x(i), y: 18 + 14 * (i % 2), "text-anchor": i === axes.length - 1 ? "end" : "middle" }, name));
    for (const [text, y] of scales[i].ticks()) root.append(svg("text", { x: x(i) + 6, y: y + 4 }, text));
    const brush = svg("rect", { class: "brush", x: x(i) - 9, width: 18, y: top, height: 0 });
    const grip = svg("rect", { x: x(i) - 14, width: 28, y: top - 6, height: bottom - top + 12, fill: "transparent",
      "data-axis": name });
    grip.style.cursor = "ns-resize"; grip.style.touchAction = "none";
    let from = null;
    const place = (event) => Math.max(top, Math.min(bottom, event.clientY - root.getBoundingClientRect().top));
    grip.addEventListener("pointerdown", (event) => { from = place(event); grip.setPointerCapture(event.pointerId); });
    grip.addEventListener("pointermove", (event) => { if (from !== null) set(place(event)); });
    grip.addEventListener("pointerup", (event) => { set(place(event)); from = null; });
    const set = (y) => {
      const range = [Math.min(from, y), Math.max(from, y)];
      brushes[i] = range[1] - range[0] < 3 ? null : range;
      brush.setAttribute("y", brushes[i] ? range[0] : top);
      brush.setAttribute("height", brushes[i] ? range[1] - range[0] : 0);
      filter();
    };
    root.append(brush, grip);
  });
  function filter() {
    let left = 0;
    lines.forEach((line, k) => {
      const stays = brushes.every((range, i) => {
        if (!range) return true;
        const y = scales[i].at(axes[i][1][k]);
        return y !== null && y >= range[0] && y <= range[1];
      });
      line.classList.toggle("off", !stays);
      left += stays ? 1 : 0;
    });
    told.textContent = left + " of " + count + " trials";
  }
  function tell(k) {
    lines.forEach((line, i) => line.classList.toggle("on", i === k));
    told.textContent = block.labels[k] + ": " + axes.map(([name, values]) => name + " " + fmt(values[k])).join(", ");
  }
  host.append(el("div", { class: "scroll" }, root), told);
  told.textContent = count + " trials; drag along an axis to choose, click a line to read it";
}
function axisScale(values, log, top, bottom) {
  const known = values.filter((v) => v !== null && v !== undefined);
  const numeric = known.length > 0 && known.every((v) => typeof v === "number");
  if (numeric) {
    const f = log && known.every((v) => v > 0) ? Math.log10 : (v) => v;
    const low = Math.min(...known.map(f)), high = Math.max(...known.map(f));
    const share = (v) => (typeof v !== "number" ? null : high > low ? (f(v) - low) / (high - low) : 0.5);
    const at = (v) => (share(v) === null ? null : bottom - share(v) * (bottom - top));
    const back = (s) => (f === Math.log10 ? 10 ** (low + s * (high - low)) : low + s * (high - low));
    return { share, at, ticks: () => (high > low ? [0, 0.25, 0.5, 0.75, 1] : [0.5])
      .map((s) => [fmt(+back(s).toPrecision(3)), bottom - s * (bottom - top)]) };
  }
  const names = [...new Set(known.map(String))].sort();
  const share = (v) => (v === null || v === undefined ? null : names.length > 1
    ? names.indexOf(String(v)) / (names.length - 1) : 0.5);
  const at = (v) => (share(v) === null ? null : bottom - share(v) * (bottom - top));
  return { share, at, ticks: () => names.slice(0, 12).map((name) => [name.slice(0, 18), at(name)]) };
}
// A table that sorts and filters; long ones draw the rows in view only.
const ROW = 27;
function drawTable(block, host, options) {
  options = options || {};
  const numeric = block.columns.map((_, i) => block.rows.some((r) => typeof r[i] === "number")
    && block.rows.every((r) => typeof r[i] === "number" || r[i] === null || r[i] === ""));
  const plain = (cell) => (cell !== null && typeof cell === "object" ? cell.text : cell);
  let order = null, words = "", extra = options.filter || (() => true), view = [];
  const body = el("tbody"), before = el("tr"), after = el("tr"), scroll = el("div", { class: "scroll" });
  const head = el("tr", {}, ...block.columns.map((name, i) => el("th", { class: numeric[i] ? "n" : null, scope: "col" },
    el("button", { type: "button", onclick: () => sort(i) }, name))));
  const count = el("span", { class: "note" });
  const long = block.rows.length > 300;
  // Rows that are drawn by their place have one height.
  scroll.append(el("table", { class: long || options.single ? "single" : null }, el("thead", {}, head), body));
  if (block.rows.length > 8 || options.search) {
    host.append(el("div", { class: "bar" }, el("input", { type: "search", placeholder: "filter", "aria-label": "filter " + block.title,
      oninput: (event) => { words = event.target.value.toLowerCase(); refresh(); } }), ...(options.controls || []), count));
  }
  host.append(scroll);
  function sort(i) {
    order = order && order[0] === i ? [i, -order[1]] : [i, numeric[i] ? -1 : 1];
    head.querySelectorAll("th").forEach((th, k) => k === i
      ? th.setAttribute("aria-sort", order[1] > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort"));
    refresh();
  }
  function refresh() {
    view = block.rows.map((row, k) => [row, k]).filter(([row, k]) => extra(row, k)
      && (!words || row.some((cell) => String(plain(cell) ?? "").toLowerCase().includes(words))));
    if (order) {
      const [i, sign] = order;
      view.sort(([a], [b]) => {
        const p = plain(a[i]), q = plain(b[i]);
        if (p === null || p === "" || p === undefined) return 1;
        if (q === null || q === "" || q === undefined) return -1;
        return sign * (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q), "en", { numeric: true }));
      });
    }
    count.textContent = view.length === block.rows.length ? view.length.toLocaleString("en") + " rows"
      : view.length.toLocaleString("en") + " of " + block.rows.length.toLocaleString("en");
    scroll.scrollTop = 0;
    paint();
  }
  function paint() {
    const start = long ? Math.max(0, Math.floor(scroll.scrollTop / ROW) - 20) : 0;
    const end = long ? Math.min(view.length, start + 70) : view.length;
    const rows = view.slice(start, end).map(([row, k]) => {
      const tr = el("tr", options.open ? { class: "link", tabindex: 0, onclick: () => options.open(k),
        onkeydown: (event) => { if (event.key === "Enter") options.open(k); },
        "aria-selected": options.selected && options.selected() === k ? "true" : null } : {});
      row.forEach((cell, i) => {
        const text = plain(cell);
        const shown = typeof text === "number" ? fmt(text) : (text ?? "");
        const td = el("td", { class: (numeric[i] ? "n " : "") + ((cell && cell.tone) || "") });
        td.append(cell && cell.href ? el("a", { href: cell.href }, shown) : shown);
        tr.append(td);
      });
      return tr;
    });
    if (long) {
      before.replaceChildren(el("td", { colspan: block.columns.length })); before.firstChild.style.height = start * ROW + "px";
      after.replaceChildren(el("td", { colspan: block.columns.length })); after.firstChild.style.height = (view.length - end) * ROW + "px";
      body.replaceChildren(before, ...rows, after);
    } else body.replaceChildren(...rows);
  }
  if (long) scroll.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  refresh();
  return { refresh, paint, filter: (next) => { extra = next; refresh(); } };
}
