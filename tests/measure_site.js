// What a reader would trip over on a page of the site: {kind: [where]}. Everything folded is opened first.
(() => {
const name = e => `${e.tagName.toLowerCase()}${e.id ? '#' + e.id : ''} ${e.textContent.trim().replace(/\s+/g, ' ').slice(0, 50)}`;
const all = q => [...document.querySelectorAll(q)];
const shown = e => e.getClientRects().length > 0;
all('details').forEach(d => d.open = true);

const luminance = colour => {
  const [r, g, b] = colour.map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const rgb = text => (text.match(/[\d.]+/g) || []).map(Number);
const over = (top, under) => top.slice(0, 3).map((x, i) => x * (top[3] ?? 1) + under[i] * (1 - (top[3] ?? 1)));

function ground(e) {                                                 // the colour behind an element, layers mixed
  const layers = [];
  for (; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    if ((colour[3] ?? 1) > 0) layers.push(colour);
    if ((colour[3] ?? 1) === 1) break;
  }
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
}

function contrast(e) {
  const style = getComputedStyle(e), under = ground(e), svg = e.namespaceURI.includes('svg');
  const ink = over(rgb(svg && style.fill !== 'none' ? style.fill : style.color), under);
  const [light, dark] = [luminance(ink), luminance(under)].sort((p, q) => q - p);
  return (light + .05) / (dark + .05);
}

function faint() {                                                   // AA: 4.5, or 3 where text is large
  const written = all('body *').filter(e => shown(e) && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const least = e => {
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    return size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5;
  };
  return written.filter(e => !e.closest('.skip-link, [aria-hidden=true]') && contrast(e) < least(e)).map(e => `${contrast(e).toFixed(2)} ${name(e)}`);
}

function wide() {                                                    // what sticks out, unless a box of its own scrolls it
  if (document.documentElement.scrollWidth <= innerWidth + 1) return [];
  const boxed = e => { for (e = e.parentElement; e; e = e.parentElement) if (e !== document.body && e !== document.documentElement && getComputedStyle(e).overflowX !== 'visible') return true; return false; };
  const out = all('main *, header *, nav *').filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e)).map(name);
  return out.length ? out : ['the page'];
}

const cut = () => all('pre').filter(e => shown(e) && e.scrollWidth > e.clientWidth + 1).map(name);

function headings() {
  const levels = all('h1, h2, h3, h4, h5, h6').filter(e => shown(e) && !e.closest('nav')).map(e => [+e.tagName[1], name(e)]);
  const jumps = levels.filter(([level], i) => i && level > levels[i - 1][0] + 1).map(([, said]) => said);
  const tops = levels.filter(([level]) => level === 1).length;
  return tops === 1 ? jumps : [`${tops} h1`, ...jumps];
}

function nameless() {
  const named = e => (e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('title') || e.labels?.length || e.querySelector('img[alt]:not([alt=""])') || e.getAttribute('aria-labelledby'));
  return all('a[href], button, input:not([type=hidden]), select, textarea, summary, iframe').filter(e => !e.closest('[aria-hidden=true]') && !named(e)).map(e => e.outerHTML.slice(0, 80));
}

function pictures() {
  const named = e => e.closest('[aria-hidden=true], [role=img][aria-label]') || (e.getAttribute('alt') ?? '').trim();
  return all('img, svg, canvas').filter(e => !e.parentElement.closest('svg') && !named(e)).map(e => e.outerHTML.slice(0, 80));
}

function plainLinks() {                                              // a link in a sentence that only its colour tells
  const inText = all('main p a[href], main li a[href], main td a[href]').filter(e => shown(e) && e.parentElement.textContent.trim() !== e.textContent.trim());
  return inText.filter(e => !getComputedStyle(e).textDecorationLine.includes('underline')).map(name);
}

function stops() {                                                   // many tab stops before the content need a skip link first
  const every = all('a[href], button, input, select, summary'), main = document.querySelector('main');
  const before = every.filter(e => main && main.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_PRECEDING);
  return before.length < 6 || every[0].classList.contains('skip-link') ? [] : [`${before.length} stops before the content`];
}

function small() {                                                   // text of a figure in the page, on a phone
  if (innerWidth > 400) return [];
  const size = e => { const m = e.getScreenCTM(); return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b); };
  const tiny = e => shown(e) && e.textContent.trim() && size(e) < 10.9;
  const drawn = all('svg[role=img], figure svg, [role=img] svg').filter(s => [...s.querySelectorAll('text')].some(tiny));
  return drawn.map(s => `${Math.min(...[...s.querySelectorAll('text')].filter(e => e.textContent.trim()).map(size)).toFixed(1)} ${s.getAttribute('aria-label') ?? 'svg'}`.slice(0, 80));
}

const cells = test => all('main td, main th').filter(e => test(e.textContent.trim())).map(name);
return {
  small: small(), wide: wide(), cut: cut(), faint: faint(), headings: headings(), nameless: nameless(), pictures: pictures(), 'plain links': plainLinks(),
  skip: stops(), scope: all('th:not([scope])').map(name), 'cut cells': cells(t => /(\.\.\.|…)$/.test(t) && t.length > 20),
  nan: cells(t => /^(NaN|nan|None|NaT|<NA>|-?inf)$/.test(t)),
};
})()
