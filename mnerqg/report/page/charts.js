"use strict";
// Charts with D3. Each says in its label what it shows, and its figures stand in a table below it.

const CHART = { least: 240, height: 210, top: 8, right: 10, bottom: 26, left: 44 };

/** An empty chart with room for axes, as wide as its place: the svg's inner group, its width and its height. */
function frame(place, label, height = CHART.height) {
  const outer = Math.max(CHART.least, place.clientWidth);
  const svg = d3.select(place).append("svg")
    .attr("viewBox", `0 0 ${outer} ${height}`)
    .attr("role", "img")
    .attr("aria-label", label);
  return {
    inner: svg.append("g").attr("transform", `translate(${CHART.left},${CHART.top})`),
    width: outer - CHART.left - CHART.right,
    height: height - CHART.top - CHART.bottom,
  };
}

function axes(inner, height, bottom, left) {
  inner.append("g").attr("transform", `translate(0,${height})`).call(bottom);
  inner.append("g").call(left);
}

/** Scores of a type: entities as filled bins, regions as an outline. */
function drawHistogram(place, type) {
  const entities = DATA.histograms.entities[type] ?? [];
  const regions = DATA.histograms.regions[type] ?? [];
  const bins = Math.max(entities.length, regions.length);
  const total = d3.sum(entities);
  const half = total ? d3.sum(entities.slice(bins / 2)) / total : 0;
  const label = `Scores of ${type}: ${total} entities, ${percent(half)} of them with a score of 50 % or more; `
    + `${d3.sum(regions)} regions`;
  const { inner, width, height } = frame(place, label, 170);
  const x = d3.scaleLinear([0, 100], [0, width]);
  const y = d3.scaleLinear([0, d3.max([...entities, ...regions]) || 1], [height, 0]).nice(4);
  axes(inner, height, d3.axisBottom(x).ticks(5), d3.axisLeft(y).ticks(4, "~s"));
  const step = 100 / bins;
  inner.append("g").attr("class", typeClass(type)).selectAll("rect").data(entities).join("rect")
    .attr("class", "bin")
    .attr("x", (_, bin) => x(bin * step) + 0.5)
    .attr("width", Math.max(1, x(step) - 1))
    .attr("y", (value) => y(value))
    .attr("height", (value) => height - y(value));
  const outline = d3.line((_, bin) => x(bin * step), (value) => y(value)).curve(d3.curveStepAfter);
  if (d3.sum(regions)) inner.append("path").attr("class", "step").attr("d", outline([...regions, regions.at(-1)]));
  place.append(legend([["bin", "entities", typeClass(type)], ["step", "regions", ""]]));
}

/** Lines over the epochs of a training run. */
function drawLines(place, chart) {
  const lines = Object.entries(chart.lines);
  const values = lines.flatMap(([, line]) => line).filter((value) => value !== null)
    .map((value) => (chart.percent ? 100 * value : value));
  const last = lines.map(([name, line]) => `${name} ${format(chart, line.at(-1))}`).join(", ");
  const { inner, width, height } = frame(place, `${chart.title} over ${chart.epochs.length} epochs; at the end ${last}`);
  const x = d3.scaleLinear(padded(d3.extent(chart.epochs)), [0, width]);
  const y = d3.scaleLinear([Math.min(0, d3.min(values)), d3.max(values) || 1], [height, 0]).nice(5);
  const whole = x.ticks(Math.min(8, chart.epochs.length)).filter(Number.isInteger);
  axes(inner, height, d3.axisBottom(x).tickValues(whole).tickFormat(d3.format("d")), d3.axisLeft(y).ticks(5));
  lines.forEach(([, line], index) => {
    const points = line.map((value, at) => [chart.epochs[at], chart.percent && value !== null ? 100 * value : value])
      .filter(([, value]) => value !== null);
    const group = inner.append("g").attr("class", `type-${index % PALETTE_SIZE}`);
    group.append("path").attr("class", "line")
      .attr("stroke-dasharray", DASHES[index % DASHES.length])
      .attr("d", d3.line(([epoch]) => x(epoch), ([, value]) => y(value))(points));
    group.selectAll("circle").data(points.length > 40 ? points.slice(-1) : points).join("circle")
      .attr("class", "dot").attr("r", 2.6)
      .attr("cx", ([epoch]) => x(epoch)).attr("cy", ([, value]) => y(value));
  });
  place.append(legend(lines.map(([name], index) => ["line", name, `type-${index % PALETTE_SIZE}`, DASHES[index % DASHES.length]])));
}

// Lines differ by more than their colour.
const DASHES = [null, "6 3", "2 3", "9 3 2 3", "1 2", "12 4"];

function format(chart, value) {
  if (value === null) return "unknown";
  return chart.percent ? percent(value) : d3.format(".3~g")(value);
}

function padded([low, high]) {
  return low === high ? [low - 1, high + 1] : [low, high];
}

/** Entries of [class of the mark, words, class of the colour, dashes]. */
function legend(entries) {
  const list = element("ul", { class: "legend" });
  for (const [mark, words, colour, dashes] of entries) {
    const item = element("li", { class: colour || null });
    const svg = d3.select(item).append("svg").attr("viewBox", "0 0 22 10").attr("aria-hidden", "true").attr("class", "chart");
    if (mark === "bin") svg.append("rect").attr("class", mark).attr("width", 22).attr("height", 10);
    else svg.append("path").attr("class", mark).attr("d", "M0,5H22").attr("stroke-dasharray", dashes ?? null);
    item.append(words);
    list.append(item);
  }
  return list;
}

function drawCharts() {
  for (const place of document.querySelectorAll("[data-histogram]")) drawHistogram(place, place.dataset.histogram);
  for (const chart of DATA.charts) drawLines(document.querySelector(`[data-chart="${chart.id}"]`), chart);
}
