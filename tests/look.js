// Returns what stands out of the window (but in a box that scrolls), and texts of too little contrast.
(() => {
  const numbers = (text) => text.match(/[\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const color = numbers(getComputedStyle(e).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color; } return [255, 255, 255]; };
  const scrolls = (e) => e.closest(".wide, .output_area, .numbers, .text_cell_render, pre");
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || !e.innerText) continue;
    if (e.getBoundingClientRect().right > innerWidth && !scrolls(e)) found.push("cut: " + e.innerText);
    const two = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort();
    if (two[1] / two[0] < 4.5) found.push("faint: " + e.innerText);
  }
  return found.slice(0, 3).join();
})()
