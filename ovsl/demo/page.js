// The word below the pointer, in every answer at the same place: read off the colours of the labels.
document.addEventListener("mousemove", (event) => {
  const over = event.target.closest?.(".ovsl-layers");
  const box = over?.getBoundingClientRect();
  for (const layers of document.querySelectorAll(".ovsl-layers")) {
    const map = layers.querySelector(".words"), here = layers.querySelector(".ovsl-here");
    if (!over) { here.textContent = ""; continue; }
    if (!map.pixels) {
      const canvas = document.createElement("canvas");
      canvas.width = map.naturalWidth;
      canvas.height = map.naturalHeight;
      map.pixels = canvas.getContext("2d", { willReadFrequently: true });
      map.pixels.drawImage(map, 0, 0);
    }
    const x = Math.floor(((event.clientX - box.left) / box.width) * map.naturalWidth);
    const y = Math.floor(((event.clientY - box.top) / box.height) * map.naturalHeight);
    const color = Array.from(map.pixels.getImageData(x, y, 1, 1).data.slice(0, 3)).join(",");
    const row = layers.parentElement.querySelector(`.ovsl-legend li[data-color="${color}"]`);
    if (row) here.textContent = row.dataset.word;
  }
});
