// Draws every figure of the page, in the colours of the present scheme, and again when the scheme changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const scheme = matchMedia("(prefers-color-scheme: dark)");

  // "arch-1/0.4" -> the style sheet's --arch-1 with opacity 0.4
  function colour(token, style) {
    const [name, opacity] = token.split("/");
    const hex = style.getPropertyValue("--" + name).trim();
    if (!opacity) return hex;
    const channel = (start) => parseInt(hex.slice(start, start + 2), 16);
    return `rgba(${channel(1)},${channel(3)},${channel(5)},${opacity})`;
  }

  function resolved(value, key, style) {
    if (Array.isArray(value)) return value.map((item) => resolved(item, "", style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolved(item, name, style)]));
    return typeof value === "string" && key.endsWith("color") ? colour(value, style) : value;
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const family = getComputedStyle(document.body).fontFamily;
    for (const [identifier, figure] of Object.entries(figures)) {
      const { data, layout } = resolved(figure, "", style);
      layout.font.family = layout.hoverlabel.font.family = family;
      Plotly.react(identifier, data, layout, {
        responsive: true,
        displaylogo: false,
        modeBarButtons: [["toImage"]],
        toImageButtonOptions: { filename: identifier, scale: 2 },
      });
    }
  }

  draw();
  scheme.addEventListener("change", draw);
})();
