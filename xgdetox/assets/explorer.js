// The explorer: choices above, four charts, a table and the texts below. Text is only ever set as text, never as HTML.
const D = JSON.parse(document.getElementById('data').textContent), $ = id => document.getElementById(id);
const rows = D.rows.data.map(r => Object.fromEntries(D.rows.columns.map((c, i) => [c, r[i]])));
const where = q => rows.filter(r => Object.entries(q).every(([k, v]) => r[k] === v));
const only = q => where(q)[0];
const unique = xs => [...new Set(xs)];
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), {textContent: text}, more);
const show = x => x == null ? '\u2013' : Math.abs(x) >= 100 ? x.toFixed(0) : x !== 0 && Math.abs(x) < .1 ? x.toPrecision(2) : x.toFixed(2);
const views = {}, drawn = {};                                        // views by chart; which chart each picture shows
const titleOf = model => D.titles[model] ?? model;
let offsets = [];

function options(select, pairs) {                                    // keep the choice where it still exists
  const old = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => make('option', text, {value})));
  if (pairs.some(p => p[0] === old)) select.value = old;
  select.parentElement.hidden = pairs.length < 2;
}

function models() {                                                  // in groups, where the page holds several runs
  if (D.groups.length < 2) return options($('model'), unique(rows.map(r => r.model)).map(m => [m, titleOf(m)]));
  $('model').replaceChildren(...D.groups.map(([label, names]) => {
    const group = make('optgroup', '', {label}); group.append(...names.map(m => make('option', titleOf(m), {value: m}))); return group;
  }));
}

function remember() {                                                // what is chosen, in the address
  const said = new URLSearchParams();
  for (const id of ['model', 'tuning', 'language']) if ($(id).value) said.set(id, $(id).value);
  if ($('measure').selectedIndex > 0) said.set('measure', $('measure').value);
  if (offsets.length) said.set('offset', offsets[+$('offset').value]);
  try { history.replaceState(null, '', '#' + said); } catch {}
}

function recall() {                                                  // what the address says, as far as the page has it
  const said = new URLSearchParams(location.hash.slice(1));
  const pick = id => { if ([...$(id).options].some(o => o.value === said.get(id))) $(id).value = said.get(id); };
  pick('model'); modelChanged();
  pick('tuning'); pick('measure'); pick('language');
  const at = said.has('offset') ? offsets.indexOf(+said.get('offset')) : -1;
  if (at >= 0) $('offset').value = at;
  choose();
}

function modelChanged() {
  const mine = where({model: $('model').value});
  const tunings = unique(mine.filter(r => r.state === 'tuned').map(r => r.tuning));
  options($('tuning'), tunings.map(t => [t, t])); $('tuning').parentElement.hidden = !tunings.length;
  const measures = D.toxicity.filter(m => mine.some(r => r.metric === m));
  options($('measure'), measures.map(m => [m, D.metrics[m]]));
  options($('language'), D.languages.filter(([c]) => mine.some(r => r.language === c)));
  offsets = unique(mine.filter(r => r.state === 'pushed').map(r => r.offset)).sort((a, b) => a - b);
  $('offset').max = Math.max(0, offsets.length - 1); $('offset').value = Math.max(0, offsets.indexOf(-1)); $('offset').parentElement.hidden = !offsets.length;
  choose();
}

function draw(name, chart, rows, heading, caption, says) {            // a word where there is nothing to draw
  const figure = $('figure-' + name), box = $('chart-' + name), [note] = figure.getElementsByClassName('note');
  figure.querySelector('h2').textContent = heading; figure.querySelector('figcaption').textContent = caption;
  box.hidden = figure.querySelector('figcaption').hidden = !rows.length; note.hidden = !!rows.length;
  note.textContent = `Nothing to draw for ${titleOf($('model').value)}: ${D.pictures[name][1]}.`;
  box.setAttribute('aria-label', says);
  if (rows.length) showChart(name, chart, rows, box);
}

function showChart(name, chart, rows, box) {                        // ast: expressions are interpreted, nothing is evaluated as code
  if (drawn[name] !== chart) { drawn[name] = chart; delete views[name]; box.replaceChildren(make('div', '')); }
  const spec = D.charts[chart], first = {...spec, data: spec.data.map(d => d.name === 'rows' ? {...d, values: rows} : d)};
  views[name] ??= vegaEmbed(box.firstElementChild, first, {mode: 'vega', renderer: 'svg', actions: false, ast: true, defaultStyle: false, tooltip: false}).then(({view}) =>
    view.addEventListener('click', (_, item) => { const code = item?.datum?.language; if (code) { $('language').value = code; choose(); } }));
  views[name].then(view => view.data('rows', rows).runAsync());
}

function byLanguage(metric, states, chosen) {                        // states: {name: query}
  const out = [];
  for (const [state, q] of Object.entries(states)) for (const r of where({...q, metric}))
    if (r.value != null) out.push({state, language: r.language, value: r.value, low: r.low ?? r.value, high: r.high ?? r.value, chosen: false});
  const first = out.find(r => r.language === chosen); if (first) first.chosen = true;
  return out;
}

function placeboOf(model, tuning) {                                  // the placebo of the tuning's seed, else the first
  const known = unique(where({model, state: 'placebo'}).map(r => r.tuning)), seed = t => t.split('seed ').pop();
  return known.find(p => seed(p) === seed(tuning)) ?? known[0] ?? null;
}

function choose() {
  const model = $('model').value, tuning = $('tuning').value, language = $('language').value, offset = offsets[+$('offset').value] ?? null;
  const measure = $('measure').value, placebo = placeboOf(model, tuning);
  $('says').textContent = offset ?? ''; $('offset').setAttribute('aria-valuetext', `offset ${offset}`);
  const q = {base: {model, state: 'base', control: 0}, tuned: {model, state: 'tuned', tuning, control: 0}, placebo: {model, state: 'placebo', tuning: placebo, control: 0},
             greedy: {model, state: 'pushed', offset: 0, control: 0}, pushed: {model, state: 'pushed', offset, control: 0}};
  const name = D.languages.find(([c]) => c === language)?.[1] ?? language, title = D.metrics[measure] ?? 'Toxicity';
  const known = states => states.filter(s => only({...q[s], language}));
  const values = (metric, states) => known(states).map(s => `${s} ${show(only({...q[s], metric, language})?.value)}`).join(', ');
  const say = (metric, states) => `${D.metrics[metric] ?? metric}, ${name}: ${values(metric, states)}`;
  const heading = name => D.pictures[name][0].replace('{}', title);
  const sides = {base: q.base, tuned: q.tuned, placebo: q.placebo, pushed: q.pushed}, shown = new Set();
  const picture = (name, chart, rows, ...words) => { rows.forEach(r => shown.add(r.state)); draw(name, chart, rows, ...words); };
  picture('toxicity', 'toxicity', byLanguage(measure, sides, language), heading('toxicity'), D.captions[measure] ?? '', say(measure, Object.keys(sides)));
  const fluency = D.fluency.find(m => rows.some(r => r.model === model && r.metric === m));
  picture('fluency', fluency === 'sentence_loss' ? 'loss' : 'fluency', byLanguage(fluency, q, language), heading('fluency'), D.captions[fluency] ?? '', say(fluency, Object.keys(q)));
  const random = s => ({...q[s], control: 1});
  picture('activations', 'activations', byLanguage('mean_activation', {base: q.base, tuned: q.tuned, random: random('base'), 'random, tuned': random('tuned')}, language), heading('activations'), D.captions.mean_activation, say('mean_activation', ['base', 'tuned']));
  const curve = where({model, state: 'pushed', metric: measure, language}).map(r => ({offset: r.offset, value: r.value, low: r.low ?? r.value, high: r.high ?? r.value, state: r.control ? 'random' : 'pushed', chosen: !r.control && r.offset === offset}));
  picture('offsets', 'offsets', curve, heading('offsets'), D.captions.offsets, `${title} over offsets, ${name}: ` + curve.filter(r => r.state === 'pushed').map(r => `${show(r.value)} at ${r.offset}`).join(', '));
  for (const item of $('key').children) item.hidden = !shown.has(item.dataset.state);
  remember(); numbers(q, language); texts(model, tuning, language, offset);
  $('about').textContent = [placebo ? `Placebo drawn: ${placebo.split(', ').pop()}.` : '', D.about[model] ?? ''].join(' ');
  $('summary').textContent = `${name}: ${values(measure, Object.keys(sides))} (${title.toLowerCase()}${offset == null ? '' : `, offset ${offset}`}).`;
}

const HEADS = {base: 'Base, sampled', tuned: 'Tuned, sampled', placebo: 'Placebo, sampled', greedy: 'Base, greedy', pushed: 'Pushed, greedy'};

function numbers(q, language) {                                      // a column for each state that the model has
  const states = Object.keys(q).filter(s => only({...q[s], language}));
  document.querySelector('#numbers thead tr').replaceChildren(...['Measure', ...states.map(s => HEADS[s])].map(h => make('th', h, {scope: 'col'})));
  const lines = Object.entries(D.metrics).map(([metric, title]) => {
    const line = make('tr', ''), cells = states.map(s => only({...q[s], metric, language}));
    if (cells.every(c => c?.value == null)) return null;
    line.append(make('th', title, {scope: 'row'}));
    cells.forEach((c, i) => {
      const cell = make('td', '', {className: 'number'}), inner = make('span', show(c?.value)); cell.dataset.label = HEADS[states[i]];
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
  if (!found.length) $('texts').append(make('p', `No continuations of ${titleOf(model)} in this language are kept here.`, {className: 'quiet'}));
}

for (const [name, colour, shape, title] of D.key) {
  const item = make('li', ''), svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS(svg.namespaceURI, 'path');
  svg.setAttribute('viewBox', '-1 -1 2 2'); svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', {circle: 'M-.8 0a.8 .8 0 1 0 1.6 0a.8 .8 0 1 0 -1.6 0', square: 'M-.7-.7h1.4v1.4h-1.4z', cross: 'M-.3-.9h.6v.6h.6v.6h-.6v.6h-.6v-.6h-.6v-.6h.6z', 'triangle-down': 'M-.9-.7h1.8l-.9 1.5z', diamond: 'M0-.95l.75 .95l-.75 .95l-.75-.95z', 'triangle-up': 'M-.9 .7h1.8l-.9 -1.5z', 'triangle-right': 'M-.7-.9v1.8l1.5 -.9z'}[shape] ?? '');
  path.setAttribute('fill', colour); svg.append(path); item.dataset.state = name; item.append(svg, title); $('key').append(item);
}
models();
for (const id of ['tuning', 'measure', 'language']) $(id).addEventListener('change', choose);
$('offset').addEventListener('input', choose); $('model').addEventListener('change', modelChanged);
$('show').addEventListener('change', e => document.body.classList.toggle('shown', e.target.checked));
document.querySelector('form').addEventListener('submit', e => e.preventDefault());
const asked = location.hash; modelChanged();
if ([...$('language').options].some(o => o.value === 'de')) { $('language').value = 'de'; choose(); }
if (asked.length > 1) { history.replaceState(null, '', asked); recall(); }
addEventListener('hashchange', recall);
addEventListener('resize', () => Object.values(views).forEach(v => v.then(view => view.resize().runAsync())));
