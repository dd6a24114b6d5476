// The chart of decisions: one line a kind, in decisions a second.
import uPlot from "./uplot.js";

export const lines = 7; // colours that there are, s0 to s6 in console.css
const dashes = [undefined, undefined, [8, 5], [2, 4], undefined, [8, 5], [2, 4]];

const height = 220;
const reach = 1800; // seconds

let plot = null;
let shown = ""; // what the chart was made for
let last = null; // what it was drawn of

const dark = matchMedia("(prefers-color-scheme: dark)");
const again = () => last && draw(...last);
dark.addEventListener("change", again);
addEventListener("resize", again);

function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color; // resolved: a canvas knows no light-dark()
  probe.remove();
  return value;
}

// draw shows the counts of kinds over times, both with the newest last.
export function draw(element, kinds, times, counts) {
  const width = element.clientWidth;
  last = [element, kinds, times, counts];
  if (width === 0) return;
  const made = `${kinds.join()} ${dark.matches}`;
  if (plot === null || made !== shown) {
    plot?.destroy();
    const grid = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: colour("--quiet"), grid, ticks: grid };
    plot = new uPlot({
      width,
      height,
      legend: { show: false }, // the table below is one
      cursor: { drag: { setScale: false } },
      scales: { x: { range: () => [last[2].at(-1) - reach, last[2].at(-1)] }, y: { range: (_, __, max) => [0, Math.max(1, max * 1.1)] } },
      axes: [axis, { ...axis, size: 60 }],
      series: [{}, ...kinds.map((label, i) => ({
        label,
        stroke: colour(`--s${i}`),
        dash: dashes[i],
        width: 2,
        points: { show: false },
      }))],
    }, [times, ...counts], element);
    shown = made;
    return;
  }
  if (plot.width !== width) plot.setSize({ width, height });
  plot.setData([times, ...counts]);
}
