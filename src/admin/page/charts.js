// Three small charts of the last hour, drawn by uPlot.
const MINUTES = 60, CHART_HEIGHT = 150;
const chartState = { list: [], style: "" };

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }

function hourAndMinute(epoch) { return new Date(epoch * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }); }

// Creates a chart in a figure, whose caption shows the values of the minute under the cursor, or the last ones.
function chart(title, series) {
  const legend = series.map(({ kind }) => createElement("i", { class: kind })), minute = createElement("span"), plot = createElement("div", { class: "plot", role: "img" });
  const figure = createElement("figure", null, createElement("figcaption", null, createElement("strong", null, title), legend, minute), plot);
  byId("charts").append(figure);
  const updateCaption = (u) => {
    const nth = u.cursor.idx ?? null, last = (values) => values.findLast((value) => value !== null);
    series.forEach(({ name, write }, at) => {
      const value = nth === null ? last(u.data[at + 1]) : u.data[at + 1][nth];
      legend[at].textContent = name + " " + (value === undefined || value === null ? "–" : write(value));
    });
    minute.textContent = nth === null ? "" : hourAndMinute(u.data[0][nth]);
    plot.setAttribute("aria-label", title + ": " + legend.map((it) => it.textContent).join(", "));
  };
  const u = new uPlot(chartOptions(plot.clientWidth, series, updateCaption), [[], ...series.map(() => [])], plot);
  return { u, series, plot, updateCaption };
}

function chartOptions(width, series, updateCaption) {
  // A scale of requests has only whole numbers.
  const bars = series.every((it) => it.bars), axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const styled = series.map(({ kind, bars }) => ({
    stroke: colour(kind), fill: bars ? colour(kind) : undefined, width: bars ? 0 : 1.8,
    paths: bars ? uPlot.paths.bars({ size: [0.8] }) : undefined, points: { show: !bars, size: 4, width: 0, fill: colour(kind) },
  }));
  return {
    width, height: CHART_HEIGHT, legend: { show: false }, series: [{}, ...styled],
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { range: (u, first, last) => [first - 30, last + 30] }, y: { range: (u, min, max) => [0, Math.max(1, max * 1.05)] } },
    axes: [{ ...axis, size: 24, space: 45, values: (u, splits) => splits.map(hourAndMinute) }, { ...axis, size: 46, space: 30, values: (u, splits) => splits.map((it) => bars && it % 1 ? "" : formatNumber(it)) }],
    hooks: { setCursor: [updateCaption], setData: [updateCaption] },
  };
}

// Shows the charts; creates them again when language, colours or width have changed.
function showCharts(minutes) {
  const formatCount = (value) => formatNumber(Math.round(value)), container = byId("charts");
  const style = [language, colour("blue"), container.clientWidth].join();
  if (style !== chartState.style) {
    chartState.style = style;
    chartState.list.forEach(({ u }) => u.destroy());
    container.replaceChildren();
    chartState.list = [
      chart(translate("perMinute"), [{ name: translate("requests"), kind: "blue", bars: true, of: (it) => it.requests, write: formatCount }]),
      chart(translate("errors"), [{ name: translate("failed"), kind: "bad", bars: true, of: (it) => it.failed, write: formatCount }]),
      chart(translate("latency"), [
        { name: "p50", kind: "blue", of: (it) => it.p50_ms, write: formatMilliseconds },
        { name: "p99", kind: "warn", of: (it) => it.p99_ms, write: formatMilliseconds }]),
    ];
    // The layout is final only when all charts are there.
    chartState.list.forEach(({ u, plot }) => u.setSize({ width: plot.clientWidth, height: CHART_HEIGHT }));
  }
  // Minutes before the start of the proxy stay empty.
  const known = new Map(minutes.map((it) => [it.at, it])), end = minutes.at(-1)?.at ?? 0;
  const all = Array.from({ length: MINUTES }, (_, nth) => end - (MINUTES - 1 - nth) * 60);
  for (const { u, series } of chartState.list) u.setData([all, ...series.map(({ of }) => all.map((at) => known.has(at) ? of(known.get(at)) : null))]);
}

const SVG = "http://www.w3.org/2000/svg";

function createSvg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function showOverview(overview) {
  const { minutes } = overview, requests = minutes.reduce((sum, it) => sum + it.requests, 0), failed = minutes.reduce((sum, it) => sum + it.failed, 0);
  const totals = [["total", formatNumber(requests)], ["failedShare", requests ? (100 * failed / requests).toFixed(failed && failed / requests < 0.1 ? 1 : 0) + " %" : "–"], ["inFlight", formatNumber(overview.in_flight)], ["connections", formatNumber(overview.connections)]];
  byId("numbers").replaceChildren(...totals.map(([key, value]) => createElement("div", null, createElement("dt", null, translate(key)), createElement("dd", null, value))));
  showCharts(minutes);
}

function showClients(overview) {
  const table = byId("clients"), { clients } = overview;
  setColumns(table, [translate("client")], [translate("requests"), "number"], [translate("uses")]);
  const rows = clients.slice(0, 200).map(({ name, agents }) => {
    const used = agents.slice().sort((one, other) => other.requests - one.requests);
    const chips = used.slice(0, 20).map((it) => chip((it.name ?? "–") + " " + formatNumber(it.requests)));
    if (used.length > 20) chips.push(chip("+" + (used.length - 20)));
    return createRow(table, [[name ?? translate("noKey")], [formatNumber(used.reduce((sum, it) => sum + it.requests, 0)), "number"], [createElement("div", { class: "chips" }, chips)]]);
  });
  const others = overview.unlisted_requests ? [emptyRow(table, translate("unlisted", formatNumber(overview.unlisted_requests)))] : [];
  table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, translate("noClients"))]), ...others);
  byId("client-names").replaceChildren(...clients.slice(0, 200).filter(({ name }) => name).map(({ name }) => createElement("option", { value: name })));
}
