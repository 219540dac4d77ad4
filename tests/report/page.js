// What a test wants to know of a rendered page; the value of this expression is JSON.
(() => {
  for (const details of document.querySelectorAll("details")) details.open = true;

  const parse = colour => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (front, back) => ({
    r: front.r * front.a + back.r * (1 - front.a),
    g: front.g * front.a + back.g * (1 - front.a),
    b: front.b * front.a + back.b * (1 - front.a),
    a: 1,
  });
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map(part => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  // WCAG 2.2, "contrast ratio"
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour.a === 1) break;
    }
    return layers.reduceRight((back, front) => over(front, back), { r: 255, g: 255, b: 255, a: 1 });
  };
  const inScroll = element => element.closest(".scroll, .text") !== null;

  const pale = [], beyond = [];
  let texts = 0, least = 99;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) continue;
    texts += 1;
    const style = getComputedStyle(element);
    const ratio = contrast(parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color), behind(element));
    least = Math.min(least, ratio);
    if (ratio < 4.5) pale.push([node.data.trim().slice(0, 40), ratio, style.color]);
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!inScroll(element) && (box.right > innerWidth + 1 || box.left < -1)) beyond.push([node.data.trim().slice(0, 40), box.right]);
  }
  const marks = [...document.querySelectorAll("svg .dot, svg .range, svg polyline, svg circle, svg .mean")].filter(mark => {
    const style = getComputedStyle(mark);
    const colour = style.stroke === "none" ? style.fill : style.stroke;
    return contrast(parse(colour), behind(mark)) < 3;
  });
  return {
    texts, least, pale, beyond,
    paleMarks: marks.map(mark => [mark.outerHTML.slice(0, 80), getComputedStyle(mark).stroke, behind(mark)]),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    headings: [...document.querySelectorAll("h1, h2, h3, h4")].map(heading => Number(heading.tagName[1])),
    sections: [...document.querySelectorAll("h2")].map(heading => heading.textContent),
    nameless: [...document.querySelectorAll("svg")].filter(svg => svg.getAttribute("role") !== "img" || !svg.getAttribute("aria-label")).length,
    scopeless: document.querySelectorAll("th:not([scope])").length,
    foreign: document.querySelectorAll("script, iframe, object, embed, img, video, audio, form, a[href], base").length,
    handlers: [...document.querySelectorAll("*")].filter(one => [...one.attributes].some(a => a.name.startsWith("on"))).length,
    styles: document.querySelectorAll("style").length,
    ids: document.querySelectorAll("[id]").length - new Set([...document.querySelectorAll("[id]")].map(one => one.id)).size,
    background: getComputedStyle(document.body).backgroundColor,
    body: document.body.innerText,
  };
})()
