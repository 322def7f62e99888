// A click on a heading sorts the table; a second one the other way round. Cells without a value stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex, numeric = body.querySelector(`td:nth-child(${column + 1}).number`) !== null;
    const before = heading.getAttribute("aria-sort");
    const up = before ? before === "descending" : !numeric;
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows);
  });
}

// Videos of a suite play while they can be seen, unless the reader's system asks for less motion.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.play().catch(() => {}); // a browser may refuse; there are controls
      else target.pause();
    }
  });
  for (const video of document.querySelectorAll("video.plays")) watch.observe(video);
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.documentElement), read = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: read("--line"), zerolinecolor: read("--line"), linecolor: read("--line"), automargin: true };
  for (const place of document.querySelectorAll(".plot")) {
    if (typeof Plotly === "undefined") {
      place.classList.add("missing");
      place.textContent = "This chart needs plotly.min.js: put that file beside this page.";
      continue;
    }
    if (place.classList.contains("missing")) place.textContent = "";
    place.classList.remove("missing");
    const { data, layout } = JSON.parse(place.dataset.figure);
    Plotly.react(place, data, {
      height: 320, margin: { l: 50, r: 14, t: 14, b: 44 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: read("--ink") },
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    }, { responsive: true, displayModeBar: false });
  }
}
addEventListener("DOMContentLoaded", () => { // plotly's script has run by then, if it is where the page expects it
  draw();
  if (typeof Plotly !== "undefined") return;
  const script = document.createElement("script"); // both files may have been sent to somebody, in one folder
  script.src = "plotly.min.js";
  script.addEventListener("load", draw);
  document.head.append(script);
});
dark.addEventListener("change", draw);
