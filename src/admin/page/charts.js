// Three small charts of the last hour, drawn by uPlot.
const MINUTES = 60, CHART_HEIGHT = 150, HATCH_SIZE = 6;
const chartState = { list: [], style: "", startedAt: null };
const FAILURES = [["outage", "bad"], ["refused", "amber"], ["wecom", "violet"], ["caller", "gray"]];
const COLOURS = { amber: "warn", gray: "quiet" };

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + (COLOURS[name] ?? name)).trim(); }

function hourAndMinute(epoch) { return new Date(epoch * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }); }

// A pattern for bars of the running minute, which are not whole yet.
function hatch(name) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  canvas.width = canvas.height = HATCH_SIZE;
  context.strokeStyle = colour(name);
  context.lineWidth = 1.5;
  for (const shift of [-HATCH_SIZE, 0, HATCH_SIZE]) {
    context.moveTo(shift, HATCH_SIZE);
    context.lineTo(shift + HATCH_SIZE, 0);
  }
  context.stroke();
  return context.createPattern(canvas, "repeat");
}

// Draws a line where the proxy started.
function drawStart(u) {
  if (!chartState.startedAt || chartState.startedAt < u.scales.x.min) return;
  const x = Math.round(u.valToPos(chartState.startedAt, "x", true)), { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("quiet");
  ctx.setLineDash([4, 3]);
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.font = "11px system-ui, sans-serif";
  ctx.textAlign = x > bbox.left + bbox.width - 40 ? "right" : "left";
  ctx.fillText(" " + translate("startMark") + " ", x, bbox.top + 10);
  ctx.restore();
}

// Creates a chart in a figure, whose caption shows the values of the minute under the cursor, or the last whole ones.
function chart(title, series, area) {
  const legend = series.map(({ kind, filter, name }) => filter ? filterLink(name, filter, kind) : createElement("i", { class: kind })), minute = createElement("span"), plot = createElement("div", { class: "plot", role: "img" });
  const figure = createElement("figure", null, createElement("figcaption", null, createElement("strong", null, title), legend, minute), plot);
  byId("charts").append(figure);
  const state = { series, plot, minutes: [], area };
  state.updateCaption = (u) => {
    const nth = u.cursor.idx ?? null, at = state.minutes[nth ?? state.minutes.length - 2];
    series.forEach(({ name, write }, index) => { legend[index].textContent = name + " " + (at ? write(at) : "–"); });
    minute.textContent = nth === null ? "" : hourAndMinute(u.data[0][nth]);
    plot.setAttribute("aria-label", title + ": " + legend.map((it) => it.textContent).join(", "));
  };
  state.u = new uPlot(chartOptions(plot.clientWidth, series, state.updateCaption), [[], ...drawnSeries(series).map(() => [])], plot);
  return state;
}

// Bars are drawn twice: whole minutes plain, the running one hatched. Stacked bars are drawn from the highest on.
function drawnSeries(series) {
  return series.flatMap((it) => it.bars ? [{ ...it, running: false }, { ...it, running: true }] : [it]);
}

function chartOptions(width, series, updateCaption) {
  // A scale of requests has only whole numbers.
  const bars = series.every((it) => it.bars), axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const styled = drawnSeries(series).map(({ kind, bars, running }) => {
    const fill = bars ? running ? hatch(kind) : colour(kind) : undefined;
    return {
      stroke: colour(kind), fill: bars ? () => fill : undefined, width: bars ? running ? 1 : 0 : 1.8,
      paths: bars ? uPlot.paths.bars({ size: [0.8] }) : undefined, points: { show: !bars, size: 4, width: 0, fill: colour(kind) },
    };
  });
  return {
    width, height: CHART_HEIGHT, legend: { show: false }, series: [{}, ...styled],
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { range: (u, first, last) => [first - 30, last + 30] }, y: { range: (u, min, max) => [0, Math.max(1, max * 1.05)] } },
    axes: [{ ...axis, size: 24, space: 45, values: (u, splits) => splits.map(hourAndMinute) }, { ...axis, size: 46, space: 30, values: (u, splits) => splits.map((it) => bars && it % 1 ? "" : formatNumber(it)) }],
    hooks: { setCursor: [updateCaption], setData: [updateCaption], draw: [drawStart] },
  };
}

function createCharts() {
  const writeCount = (key) => (it) => formatNumber(it[key]);
  // Each class stands on those before it.
  const stacked = FAILURES.map(([key, kind], nth) => ({
    name: translate(key), kind, bars: true, filter: { failed: key }, write: writeCount(key),
    of: (it) => FAILURES.slice(0, nth + 1).reduce((sum, [below]) => sum + it[below], 0),
  })).reverse();
  const time = (key, kind) => ({ name: key, kind, of: (it) => it[key + "_ms"], write: (it) => formatBounds(it[key + "_bounds_ms"], it[key + "_ms"]) });
  return [
    chart(translate("perMinute"), [{ name: translate("requests"), kind: "blue", bars: true, of: (it) => it.requests, write: writeCount("requests") }]),
    chart(translate("errors"), stacked),
    chart(translate("latency"), [time("p50", "blue"), time("p99", "amber")]),
  ];
}

// Shows the charts; creates them again when language, colours or width have changed.
function showCharts(minutes, startedAt) {
  const container = byId("charts"), style = [language, colour("blue"), container.clientWidth].join();
  chartState.startedAt = startedAt;
  if (style !== chartState.style) {
    chartState.style = style;
    chartState.list.forEach(({ u }) => u.destroy());
    container.replaceChildren();
    chartState.list = createCharts();
    // The layout is final only when all charts are there.
    chartState.list.forEach(({ u, plot }) => u.setSize({ width: plot.clientWidth, height: CHART_HEIGHT }));
  }
  // Minutes before the start of the proxy stay empty.
  const known = new Map(minutes.map((it) => [it.at, it])), end = minutes.at(-1)?.at ?? 0;
  const all = Array.from({ length: MINUTES }, (_, nth) => end - (MINUTES - 1 - nth) * 60);
  for (const state of chartState.list) {
    state.minutes = all.map((at) => known.get(at) ?? null);
    const valueAt = ({ of, running }, at) => {
      const minute = known.get(at), isRunning = at === end;
      return minute && (running ?? false) === isRunning ? of(minute) : null;
    };
    state.u.setData([all, ...drawnSeries(state.series).map((it) => all.map((at) => valueAt(it, at)))]);
  }
}
