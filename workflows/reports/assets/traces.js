// The trace browser: episodes, and the steps of the one that is open. Its address is
// #episode=ID&t=N, so that an episode's step can be linked to.
function drawTraces(block, host) {
  const data = block.data, columns = data.columns, kinds = [...new Set(data.rows.map((r) => r[columns.indexOf("kind")]))];
  const at = Object.fromEntries(columns.map((name, i) => [name, i]));
  const idOf = (k) => data.rows[k][at.episode];
  const side = el("div"), main = el("div", { class: "block", id: "trace", "aria-live": "polite" });
  let open = null, timer = null;
  const wanted = { kind: "", traced: true, low: "", high: "" };
  const table = () => list.filter((row, k) => (!wanted.kind || row[at.kind] === wanted.kind)
    && (!wanted.traced || data.traces[idOf(k)])
    && (wanted.low === "" || (row[at.return] !== null && row[at.return] >= +wanted.low))
    && (wanted.high === "" || (row[at.return] !== null && row[at.return] <= +wanted.high)));
  const number = (key, label) => el("label", {}, label, el("input", { type: "number", step: "any", "aria-label": label + " return",
    oninput: (event) => { wanted[key] = event.target.value; table(); } }));
  const controls = [
    el("label", {}, el("input", { type: "checkbox", checked: true, "aria-label": "only episodes whose steps are here",
      onchange: (event) => { wanted.traced = event.target.checked; table(); } }), "with steps"),
    kinds.length > 1 ? el("select", { "aria-label": "kind", onchange: (event) => { wanted.kind = event.target.value; table(); } },
      el("option", { value: "" }, "all kinds"), ...kinds.map((kind) => el("option", { value: kind }, kind))) : null,
    number("low", "from"), number("high", "to"),
  ].filter(Boolean);
  const list = drawTable({ title: "episodes", columns, rows: data.rows }, side, { search: true, single: true, controls,
    open: (k) => { location.hash = "episode=" + encodeURIComponent(idOf(k)); }, selected: () => open,
    filter: (_, k) => !!data.traces[idOf(k)] });
  // An episode that is alone needs no list.
  host.append(data.rows.length > 1 ? el("div", { class: "browser" }, side, main) : main);
  if (data.note) host.append(el("p", { class: "note" }, data.note));
  function show(id, t) {
    clearInterval(timer);
    const k = data.rows.findIndex((row) => row[at.episode] === id), trace = data.traces[id];
    open = k < 0 ? null : k;
    list.paint();
    if (!trace) {
      main.replaceChildren(el("h3", {}, id ? "Episode " + id : "No episode is open"), el("p", { class: "note" },
        id ? (k < 0 ? "It is not in this report." : "Its steps are not in this report.") + " These commands show them:"
          : "Choose one from the list."),
        ...(id ? [el("pre", {}, data.command.replaceAll("EPISODE", id))] : []));
      return;
    }
    const facts = el("dl");
    for (const [name, value] of trace.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
    const player = el("div", { class: "player" }), canvas = trace.frames ? el("canvas", { class: "frame", "aria-label": "frame" }) : null;
    const slider = el("input", { type: "range", min: 0, max: trace.length - 1, value: 0, "aria-label": "step",
      oninput: () => step(+slider.value, true) });
    const says = el("span", { class: "num" });
    const play = el("button", { type: "button", onclick: () => run() }, "Play");
    player.append(el("button", { type: "button", "aria-label": "previous step", onclick: () => step(now - 1, true) }, "‹"), play,
      el("button", { type: "button", "aria-label": "next step", onclick: () => step(now + 1, true) }, "›"), slider, says);
    const charts = el("div"), steps = el("div");
    main.replaceChildren(...[el("h3", {}, "Episode " + id), facts, canvas, player, charts, steps].filter(Boolean));
    let now = 0;
    const lines = trace.panels.map((panel) => {
      const box = el("div"); charts.append(el("h4", {}, panel.title), box);
      return drawChart({ title: panel.title, x_label: "", series: panel.series.map((s) => ({ name: s.name, x: trace.t, y: s.y })) }, box,
        { height: 150, sync: "trace", steady: true, legend: panel.series.length > 1 });
    }).filter(Boolean);
    const rows = trace.t.map((value, i) => trace.table.map((column) => column.values[i]));
    const grid = drawTable({ title: "steps", columns: trace.table.map((c) => c.name), rows }, steps,
      { open: (i) => step(i, true), selected: () => now, search: rows.length > 8 });
    const frames = trace.frames ? inflated(trace.frames) : null;
    function step(i, told) {
      now = Math.max(0, Math.min(trace.length - 1, i));
      slider.value = now;
      says.textContent = "t " + trace.t[now] + "  reward " + fmt(trace.reward[now]) + "  action " + trace.action[now];
      for (const line of lines) line.setCursor({ left: line.valToPos(trace.t[now], "x"), top: 20 });
      grid.paint();
      if (frames) frames.then((bytes) => paintFrame(canvas, bytes, trace.frames, now), () => {});
      if (told) history.replaceState(null, "", "#episode=" + encodeURIComponent(id) + "&t=" + trace.t[now]);
    }
    function run() {
      if (timer) { clearInterval(timer); timer = null; play.textContent = "Play"; return; }
      play.textContent = "Pause";
      if (now >= trace.length - 1) step(0, false);
      timer = setInterval(() => {
        if (now >= trace.length - 1) { clearInterval(timer); timer = null; play.textContent = "Play"; } else step(now + 1, false);
      }, 50);
    }
    main.onkeydown = (event) => {
      if (event.target.tagName === "INPUT") return;
      if (event.key === "ArrowRight") step(now + 1, true);
      if (event.key === "ArrowLeft") step(now - 1, true);
    };
    const first = t === null ? 0 : trace.t.indexOf(t);
    step(Math.max(first, 0), false);
  }
  function follow(scrolls) {
    const found = /^#episode=([^&]*)(?:&t=(\d+))?$/.exec(location.hash);
    if (!found) { if (open === null) show(data.first, null); return; }
    let id = found[1];
    try { id = decodeURIComponent(id); } catch { /* shown as it is */ }
    show(id, found[2] === undefined ? null : +found[2]);
    if (scrolls) document.getElementById("traces").scrollIntoView();
  }
  window.addEventListener("hashchange", () => follow(false));
  follow(location.hash.startsWith("#episode="));
}
async function inflated(frames) {
  const bytes = Uint8Array.from(atob(frames.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
function paintFrame(canvas, bytes, frames, t) {
  const [height, width, channels] = frames.shape, size = height * width * channels;
  const start = Math.floor(t / frames.every) * size, image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[start + i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width; canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}
