// Stands at the end of a page that is looked at in a frame: acts as a reader would, measures the page, tells the parent.
const luminance = colour => {
  const [r, g, b] = colour.map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const rgb = text => (text.match(/[\d.]+/g) || []).map(Number);
const hasText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());

function ground(e) {                                                 // the colour behind an element; a page without one is white
  while (e && (rgb(getComputedStyle(e).backgroundColor)[3] ?? 1) === 0) e = e.parentElement;
  return e ? rgb(getComputedStyle(e).backgroundColor).slice(0, 3) : [255, 255, 255];
}

function contrast(e) {
  const style = getComputedStyle(e), svg = e.namespaceURI.includes('svg');
  const ink = rgb(svg && style.fill !== 'none' ? style.fill : style.color).slice(0, 3);
  const [light, dark] = [luminance(ink), luminance(ground(e))].sort((p, q) => q - p);
  return (light + .05) / (dark + .05);
}

function measure() {
  __ACT__;
  document.querySelectorAll('details').forEach(d => d.open = true);
  const visible = [...document.querySelectorAll('body *')].filter(e => hasText(e) && e.getClientRects().length);
  const faint = visible.filter(e => contrast(e) < 4.5).map(e => e.tagName + ':' + e.textContent.slice(0, 20));
  const beyond = e => !e.closest('.wide') && e.getBoundingClientRect().right > innerWidth + 1;
  const wide = [...document.querySelectorAll('body *')].filter(beyond).map(e => e.tagName + '.' + e.className);
  setTimeout(() => tell(faint.slice(0, 5), wide.slice(0, 5)), 300);
}

function tell(faint, wide) {
  const named = e => e.closest('[role=img][aria-label], [aria-hidden=true], img[alt]');
  const images = [...document.querySelectorAll('svg, img, canvas')];
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  parent.postMessage(JSON.stringify({
    faint, wide, dark, said: __SAY__, scroll: document.documentElement.scrollWidth, inner: innerWidth,
    images: images.length, nameless: images.filter(e => !named(e)).length,
  }), '*');
}

addEventListener('load', () => setTimeout(measure, 1500));
