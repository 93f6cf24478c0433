// The explorer: choices above, four charts, a table and the texts below. Text is only ever set as text, never as HTML.
const D = JSON.parse(document.getElementById('data').textContent), $ = id => document.getElementById(id);
const rows = D.rows.data.map(r => Object.fromEntries(D.rows.columns.map((c, i) => [c, r[i]])));
const where = q => rows.filter(r => Object.entries(q).every(([k, v]) => r[k] === v));
const only = q => where(q)[0];
const unique = xs => [...new Set(xs)];
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), {textContent: text}, more);
const show = x => x == null ? '\u2013' : Math.abs(x) >= 100 ? x.toFixed(0) : x !== 0 && Math.abs(x) < .1 ? x.toPrecision(2) : x.toFixed(2);
const views = {};
let offsets = [];

function options(select, pairs) {                                    // keep the choice where it still exists
  const old = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => make('option', text, {value})));
  if (pairs.some(p => p[0] === old)) select.value = old;
  select.parentElement.hidden = pairs.length < 2;
}

function models() {                                                  // in groups, where the page holds several runs
  if (D.groups.length < 2) return options($('model'), unique(rows.map(r => r.model)).map(m => [m, m]));
  $('model').replaceChildren(...D.groups.map(([label, names]) => {
    const group = make('optgroup', '', {label}); group.append(...names.map(m => make('option', m, {value: m}))); return group;
  }));
}

function remember() {                                                // what is chosen, in the address
  const said = new URLSearchParams();
  for (const id of ['model', 'tuning', 'language']) if ($(id).value) said.set(id, $(id).value);
  if (offsets.length) said.set('offset', offsets[+$('offset').value]);
  try { history.replaceState(null, '', '#' + said); } catch {}
}

function recall() {                                                  // what the address says, as far as the page has it
  const said = new URLSearchParams(location.hash.slice(1));
  const pick = id => { if ([...$(id).options].some(o => o.value === said.get(id))) $(id).value = said.get(id); };
  pick('model'); modelChanged();
  pick('tuning'); pick('language');
  const at = said.has('offset') ? offsets.indexOf(+said.get('offset')) : -1;
  if (at >= 0) $('offset').value = at;
  choose();
}

function modelChanged() {
  const mine = where({model: $('model').value});
  const tunings = unique(mine.filter(r => r.state === 'tuned').map(r => r.tuning));
  options($('tuning'), tunings.map(t => [t, t])); $('tuning').parentElement.hidden = !tunings.length;
  options($('language'), D.languages.filter(([c]) => mine.some(r => r.language === c)));
  offsets = unique(mine.filter(r => r.state === 'pushed').map(r => r.offset)).sort((a, b) => a - b);
  $('offset').max = Math.max(0, offsets.length - 1); $('offset').value = Math.max(0, offsets.indexOf(-1)); $('offset').parentElement.hidden = !offsets.length;
  choose();
}

function draw(name, data, says) {                                    // ast: expressions are interpreted, nothing is evaluated as code
  const spec = D.charts[name], first = {...spec, data: spec.data.map(d => d.name === 'rows' ? {...d, values: data} : d)};
  views[name] ??= vegaEmbed($('chart-' + name).firstElementChild, first, {mode: 'vega', renderer: 'svg', actions: false, ast: true, defaultStyle: false, tooltip: false}).then(({view}) =>
    view.addEventListener('click', (_, item) => { const code = item?.datum?.language; if (code) { $('language').value = code; choose(); } }));
  views[name].then(view => view.data('rows', data).runAsync());
  $('chart-' + name).setAttribute('aria-label', says);
}

function byLanguage(metric, states, chosen) {                        // states: {name: query}
  const out = [];
  for (const [state, q] of Object.entries(states)) for (const r of where({...q, metric}))
    if (r.value != null) out.push({state, language: r.language, value: r.value, low: r.low ?? r.value, high: r.high ?? r.value, chosen: false});
  const first = out.find(r => r.language === chosen); if (first) first.chosen = true;
  return out;
}

function choose() {
  const model = $('model').value, tuning = $('tuning').value, language = $('language').value, offset = offsets[+$('offset').value] ?? null;
  $('says').textContent = offset ?? ''; $('offset').setAttribute('aria-valuetext', `offset ${offset}`);
  const q = {base: {model, state: 'base', control: 0}, tuned: {model, state: 'tuned', tuning, control: 0},
             greedy: {model, state: 'pushed', offset: 0, control: 0}, pushed: {model, state: 'pushed', offset, control: 0}};
  const name = D.languages.find(([c]) => c === language)?.[1] ?? language;
  const say = (metric, states) => `${D.metrics[metric] ?? metric}, ${name}: ` + states.map(s => `${s} ${show(only({...q[s], metric, language})?.value)}`).join(', ');
  draw('toxicity', byLanguage(D.toxicity, {base: q.base, tuned: q.tuned, pushed: q.pushed}, language), say(D.toxicity, ['base', 'tuned', 'pushed']));
  draw('fluency', byLanguage('perplexity', q, language), say('perplexity', ['base', 'tuned', 'greedy', 'pushed']));
  const random = s => ({...q[s], control: 1});
  draw('activations', byLanguage('mean_activation', {base: q.base, tuned: q.tuned, random: random('base'), 'random, tuned': random('tuned')}, language), say('mean_activation', ['base', 'tuned']));
  const curve = where({model, state: 'pushed', metric: D.toxicity, language}).map(r => ({offset: r.offset, value: r.value, state: r.control ? 'random' : 'pushed', chosen: !r.control && r.offset === offset}));
  draw('offsets', curve, `${D.metrics[D.toxicity]} over offsets, ${name}: ` + curve.filter(r => r.state === 'pushed').map(r => `${show(r.value)} at ${r.offset}`).join(', '));
  remember(); numbers(q, language); texts(model, tuning, language, offset);
  $('summary').textContent = `${name}: ${say(D.toxicity, ['base', 'tuned', 'pushed']).split(': ')[1]} (${(D.metrics[D.toxicity] ?? '').toLowerCase()}${offset == null ? '' : `, offset ${offset}`}).`;
}

function numbers(q, language) {
  const heads = [...document.querySelectorAll('#numbers thead th')].slice(1).map(h => h.textContent);
  const lines = Object.entries(D.metrics).map(([metric, title]) => {
    const line = make('tr', ''), cells = Object.values(q).map(s => only({...s, metric, language}));
    if (cells.every(c => c?.value == null)) return null;
    line.append(make('th', title, {scope: 'row'}));
    cells.forEach((c, i) => {
      const cell = make('td', '', {className: 'number'}), inner = make('span', show(c?.value)); cell.dataset.label = heads[i];
      if (c) inner.append(' ', make('small', (c.low == null ? '' : `[${show(c.low)}, ${show(c.high)}] `) + (c.n == null ? '' : `n ${c.n}`)));
      cell.append(inner); line.append(cell);
    });
    return line;
  });
  $('numbers').tBodies[0].replaceChildren(...lines.filter(Boolean));
}

function passage(parts, tag, language) {                             // plain, rude, plain, rude ...
  const out = make(tag, '', {lang: language, dir: 'auto'});
  parts.forEach((p, i) => i % 2 ? out.append(make('span', p[0] + '*'.repeat(Math.max(1, p.length - 1)), {className: 'm'}), make('span', p, {className: 'u'})) : out.append(p));
  return out;
}

function texts(model, tuning, language, offset) {
  const found = D.texts[model]?.[language] ?? [];
  $('texts').replaceChildren(...found.flatMap(t => {
    const grid = make('div', '', {className: 'texts'});
    for (const [title, some] of [['Base, sampled', t.base], [`Tuned (${tuning}), sampled`, t.tuned[tuning]], ['Base, greedy', t.pushed[0]], [`Offset ${offset}, greedy`, offset ? t.pushed[offset] : null]]) {
      if (!some?.length) continue;
      const cell = make('div', ''); cell.append(make('h3', title), ...some.map(x => passage(x.join('') ? x : ['(nothing)'], 'p', language))); grid.append(cell);
    }
    return [passage(t.prompt, 'blockquote', language), grid];
  }));
  if (!found.length) $('texts').append(make('p', 'This run kept no continuations of this model and language.', {className: 'quiet'}));
}

for (const [name, colour, shape, title] of D.key) {
  const item = make('li', ''), svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS(svg.namespaceURI, 'path');
  svg.setAttribute('viewBox', '-1 -1 2 2'); svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', {circle: 'M-.8 0a.8 .8 0 1 0 1.6 0a.8 .8 0 1 0 -1.6 0', square: 'M-.7-.7h1.4v1.4h-1.4z', cross: 'M-.3-.9h.6v.6h.6v.6h-.6v.6h-.6v-.6h-.6v-.6h.6z', 'triangle-down': 'M-.9-.7h1.8l-.9 1.5z', diamond: 'M0-.95l.75 .95l-.75 .95l-.75-.95z', 'triangle-up': 'M-.9 .7h1.8l-.9 -1.5z'}[shape] ?? '');
  path.setAttribute('fill', colour); svg.append(path); item.append(svg, title); $('key').append(item);
}
models();
for (const id of ['tuning', 'language']) $(id).addEventListener('change', choose);
$('offset').addEventListener('input', choose); $('model').addEventListener('change', modelChanged);
$('show').addEventListener('change', e => document.body.classList.toggle('shown', e.target.checked));
document.querySelector('form').addEventListener('submit', e => e.preventDefault());
const asked = location.hash; modelChanged();
if ([...$('language').options].some(o => o.value === 'de')) { $('language').value = 'de'; choose(); }
if (asked.length > 1) { history.replaceState(null, '', asked); recall(); }
addEventListener('hashchange', recall);
addEventListener('resize', () => Object.values(views).forEach(v => v.then(view => view.resize().runAsync())));
