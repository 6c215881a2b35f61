// The page: its sections and blocks, drawn when they come into view.
const DRAW = {
  chart: (block, host, section) => drawChart(block, host, { sync: section }),
  table: (block, host) => drawTable(block, host),
  parallel: (block, host) => drawParallel(block, host),
  intervals: (block, host) => drawIntervals(block, host),
  traces: (block, host) => drawTraces(block, host),
  facts: (block, host) => {
    const list = el("dl");
    for (const [name, value, tone] of block.rows) list.append(el("dt", {}, name), el("dd", { class: tone || null }, value));
    host.append(list);
  },
  note: (block, host) => {
    host.append(el("p", { class: block.tone || null }, block.text));
    if (block.code) host.append(el("pre", {}, block.code));
  },
  details: (block, host) => {
    host.append(el("details", {}, el("summary", {}, block.title), el("pre", {}, block.body)));
  },
  videos: (block, host) => {
    const films = el("div", { class: "films" });
    for (const [name, source] of block.films) {
      films.append(el("figure", {}, el("video", { src: source, controls: true, preload: "metadata", playsinline: true }),
        el("figcaption", { class: "note" }, name)));
    }
    host.append(films);
  },
  grid: (block, host) => {
    const detail = el("pre", { hidden: true });
    const head = el("tr", {}, el("th", {}, ""), ...block.columns.map((name) => el("th", { scope: "col" }, name)));
    const body = block.rows.map((name, i) => el("tr", {}, el("th", { scope: "row" }, name), ...block.cells[i].map((cell, k) => el("td", {},
      cell ? el("button", { type: "button", class: "s-" + cell.status, title: cell.status,
        onclick: () => { detail.hidden = false; detail.textContent = name + " " + block.columns[k] + ": " + cell.detail; } }, cell.text) : ""))));
    host.append(el("div", { class: "scroll grid" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body))), detail);
  },
};
const WIDE = new Set(["table", "parallel", "intervals", "traces", "details", "videos", "grid", "note"]);
function build(report) {
  document.getElementById("subtitle").textContent = report.subtitle;
  const nav = document.getElementById("nav"), main = document.getElementById("main"), waiting = new Map();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "600px" });
  function draw(host) {
    const job = waiting.get(host);
    if (!job) return;
    waiting.delete(host); observer.unobserve(host);
    job();
  }
  // What is drawn later grows; a link must not lead to where its section was before.
  const drawAll = () => [...waiting.keys()].forEach(draw);
  for (const section of report.sections) {
    nav.append(el("a", { href: "#" + section.id, onclick: drawAll }, section.title));
    const blocks = el("div", { class: "blocks" });
    main.append(el("section", { id: section.id }, el("h2", {}, section.title), blocks));
    for (const block of section.blocks) {
      const host = el("div", { class: "block" + (WIDE.has(block.kind) ? " wide" : ""), "data-kind": block.kind });
      if (block.title && block.kind !== "details") host.append(el("h3", {}, block.title));
      if (block.kind === "chart") host.style.minHeight = "17rem";
      blocks.append(host);
      waiting.set(host, () => {
        DRAW[block.kind](block, host, section.id);
        host.style.minHeight = "";
        if (block.note) host.append(el("p", { class: "note" }, block.note));
      });
      observer.observe(host);
    }
  }
  window.addEventListener("beforeprint", drawAll);
  const asked = location.hash.startsWith("#episode=") ? "traces" : location.hash.slice(1);
  if (asked) {
    drawAll();
    const place = document.getElementById(asked);
    if (place) place.scrollIntoView();
  }
  const marks = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) for (const link of nav.children) {
      if (link.getAttribute("href") === "#" + entry.target.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  main.querySelectorAll("section").forEach((section) => marks.observe(section));
  let due = null;
  window.addEventListener("resize", () => {
    clearTimeout(due);
    due = setTimeout(() => plots.forEach((plot) => {
      const box = plot.root.parentElement;
      if (!box || !box.isConnected) plots.delete(plot);
      else if (box.clientWidth) plot.setSize({ width: box.clientWidth, height: plot.height });
    }), 120);
  });
}
const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) { root.dataset.theme = name; plots.forEach((plot) => plot.redraw(false)); }
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
build(JSON.parse(document.getElementById("data").textContent));
document.body.dataset.ready = "true";
