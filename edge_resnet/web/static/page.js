'use strict';
// Shows what /events tells, with its age. Nothing here is kept looking alive: what gets old is greyed and says how old it is.

const SLICES = [['camera_to_frame_ready', 'to frame ready'], ['frame_to_inference_done', 'to inference done'], ['inference_to_actuator', 'to actuator'],
  ['total', 'total']];
const HOPS = {camera: 'source → camera', preprocess: 'camera → preprocess', inference: 'preprocess → inference', actuator: 'inference → actuator'};
const EXPECTED = ['preprocess', 'inference', 'actuator'];
const HISTORY_S = 300, SHORTEST_S = 60, LOST_S = 1.5, ANSWER_S = 3;
const token = document.querySelector('meta[name=token]').content;
const $ = id => document.getElementById(id);
let last = null, session = null, points = [], offset = Infinity, pictureAt = null, loading = false;

const clock = () => performance.now() / 1000;
const lag = () => last ? Math.max(0, clock() - offset - last.t) : 0;  // how long ago the newest message was made, beyond the usual way
const known = value => value !== null && value !== undefined;
const fixed = value => known(value) ? value.toFixed(value < 1000 ? 1 : 0) : '–';
const whole = value => known(value) ? Math.round(value).toLocaleString('en') : '–';

function set(element, text) { if (element.textContent !== text) element.textContent = text; }

function make(tag, kind = '', text = '') {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

// As many children as there are items: made once, updated after that.
function list(parent, items, create, update) {
  while (parent.children.length > items.length) parent.lastChild.remove();
  items.forEach((item, index) => update(parent.children[index] || parent.appendChild(create(item)), item));
}

function cells(row, texts) { texts.forEach((text, index) => set(row.cells[index], text)); }

function newRow(columns) {
  const row = make('tr');
  for (let column = 0; column < columns; column++) row.appendChild(make('td'));
  return row;
}

function ageText(age) { return known(age) ? `stale ${age.toFixed(1)} s` : 'never heard'; }

function aged(card, age) {
  const stale = !known(age) || age + lag() > Number(card.dataset.limit);
  card.classList.toggle('stale', stale);
  set(card.querySelector('.age'), stale ? ageText(known(age) ? age + lag() : null) : '');
  return stale;
}

function showAges() {
  const pill = $('link'), lost = !last || lag() > LOST_S;
  document.body.classList.toggle('lost', lost);
  pill.className = `pill ${lost ? 'bad' : 'good'}`;
  set(pill, !last ? 'connecting' : lost ? `no connection for ${lag().toFixed(1)} s` : 'connected');
  if (!last) return;
  aged($('picture-card'), known(pictureAt) ? Math.max(last.t - pictureAt, last.result.age_s ?? 0) : null);
  aged($('latency-card'), last.latency.age_s);
  aged($('thermal-card'), last.thermal.age_s);
  aged($('drift-card'), last.drift.age_s);
  const stale = aged($('actuator-card'), last.actuator.age_s);
  set($('on'), stale || !known(last.actuator.on) ? 'unknown' : last.actuator.on ? 'ON' : 'off');
  $('lamp').className = !stale && last.actuator.on ? 'lit' : '';
  $('armed').hidden = stale;
  showNodes();
  list($('hops').tBodies[0], last.hops, () => newRow(6), showHop);
}

function showHop(row, hop) {
  const age = hop.age_s + lag(), missed = Object.fromEntries(hop.missed);
  row.className = age > 3 ? 'grey' : '';
  const lost = missed['Input lost in transport'];
  cells(row, [age > 3 ? `${hop.hop}, ${ageText(age)}` : hop.hop, fixed(hop.rate), fixed(hop.missed_hz),
    whole(missed['Input superseded'] ?? missed['Overwritten before publishing']), whole(lost), whole(hop.refused)]);
  row.cells[4].className = lost > 0 ? 'hot' : '';
}

function showNodes() {
  const missing = EXPECTED.filter(name => !last.nodes.some(node => node.name === name))
    .map(name => ({name, level: -1, state: 'not heard', message: '', age_s: 0, values: {}}));
  list($('nodes'), [...last.nodes, ...missing], () => {
    const details = make('details'), summary = make('summary');
    summary.append(make('span', 'dot'), make('b'), make('span', 'muted'), make('span', 'message'), make('span', 'age'));
    details.append(summary, make('dl'));
    details.addEventListener('toggle', showNodes);
    return details;
  }, (details, node) => {
    const [dot, name, state, message, age] = details.firstChild.children, silent = node.age_s + lag() > 3;
    dot.className = `dot ${silent ? '' : `l${node.level}`}`;
    set(name, node.name);
    set(state, silent ? 'silent' : node.state);
    set(message, node.message);
    set(age, silent ? ageText(node.age_s + lag()) : '');
    if (!details.open) return;
    list(details.lastChild, Object.entries(node.values), () => { const pair = make('div'); pair.append(make('dt'), make('dd')); return pair; },
      (pair, texts) => texts.forEach((text, index) => set(pair.children[index], text)));
  });
}

function showResult() {
  const top = last.result.top, best = top[0];
  set($('label'), best ? best[0] : '–');
  set($('score'), best ? best[1].toFixed(2) : '');
  list($('top'), top, () => { const item = make('li'); item.append(make('i'), make('span'), make('span')); return item; }, (item, [label, score]) => {
    item.children[0].style.width = `${100 * score}%`;
    set(item.children[1], label);
    set(item.children[2], score.toFixed(2));
  });
  if (last.picture) {
    $('picture').src = last.picture;
    pictureAt = last.t;
  }
}

function showLatency() {
  const {quantiles, latest, rate, frames, clock_faults} = last.latency, total = quantiles.total;
  set($('total'), total ? fixed(total[0]) : '–');
  set($('rate'), fixed(rate));
  set($('frames'), String(frames));
  SLICES.slice(0, 3).forEach(([name], index) => {
    $('stack').children[index].style.flex = latest ? `${latest[name]} 0 0` : '0 0 0';
  });
  list($('slices').tBodies[0], SLICES, ([name, label]) => {
    const row = newRow(6), index = SLICES.findIndex(entry => entry[0] === name);
    row.cells[0].append(make('i', index < 3 ? `s${index}` : ''), make('span', '', label));
    return row;
  }, (row, [name]) => {
    [latest && latest[name], ...(quantiles[name] || [null, null, null, null])].forEach((value, index) => set(row.cells[index + 1], fixed(value)));
  });
  $('faults').hidden = !clock_faults;
  set($('faults'), clock_faults ? `${clock_faults} frames with a clock fault, left out` : '');
}

function showThermal() {
  const {celsius, mhz, load, memory_mb, flags, simulated} = last.thermal;
  set($('simulated'), simulated ? 'simulated' : '');
  set($('celsius'), known(celsius) ? celsius.toFixed(1) : 'unknown');
  set($('unit'), known(celsius) ? '°C' : '');
  set($('mhz'), known(mhz) ? `${whole(mhz)} MHz` : 'unknown');
  set($('load'), known(load) ? load.toFixed(2) : 'unknown');
  set($('memory'), known(memory_mb) ? `${whole(memory_mb)} MB` : 'unknown');
  const told = Object.entries(flags).filter(([, value]) => known(value));
  list($('flags'), told.length ? told : [['throttling unknown', 0]], () => make('li'), (item, [name, value]) => {
    item.className = value ? 'set' : '';
    set(item, name.toLowerCase());
  });
}

function showActuator() {
  const {on, told_on, armed, stopped, message} = last.actuator, pill = $('armed');
  pill.className = `pill ${stopped ? 'bad' : armed ? 'good' : 'warn'}`;
  set(pill, stopped ? 'emergency stop' : armed ? 'armed' : 'not armed');
  set($('reason'), !known(told_on) || !!told_on === on ? message : '');  // it is told once a second, the state at once
  set($('arm'), armed ? 'Disarm' : stopped ? 'Re-arm' : 'Arm');
  $('arm').dataset.order = armed ? 'disarm' : 'arm';
}

function showDrift() {
  list($('drifts'), last.drift.values, () => {
    const meter = make('div', 'meter'), head = make('div'), track = make('div', 'track');
    head.append(make('span'), make('span'));
    track.append(make('i'), make('u'));
    meter.append(head, track);
    return meter;
  }, (meter, [name, value, limit]) => {
    const [head, track] = meter.children, least = name.startsWith('Sharpness'), full = (least ? 5 : 2) * limit;
    set(head.children[0], name.replace('Calibration drift', 'Brightness').replace('Calibration colour drift', 'Colours').replace(' of calibration', ''));
    set(head.children[1], `${known(value) ? value.toFixed(1) : 'unknown'}, ${least ? 'at least' : 'at most'} ${limit}`);
    track.children[0].style.width = `${Math.min(100, 100 * (value ?? 0) / full)}%`;
    track.children[0].className = known(value) && (least ? value < limit : value > limit) ? 'over' : '';
    track.children[1].style.left = `${100 * limit / full}%`;
  });
}

function quantile(values, q) {
  const sorted = values.filter(known).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(q * (sorted.length - 1))] : 0;
}

// Intervals in which a throttle flag was set: [first second, last second, flags].
function throttled() {
  const found = [];
  for (const point of points) {
    const flags = (point.simulated && point.flags.length ? 'simulated: ' : '') + point.flags.join(', ').toLowerCase(), open = found.at(-1);
    if (!flags) continue;
    if (open && open[3] === point.n - 1 && open[2] === flags) [open[1], open[3]] = [point.t, point.n];
    else found.push([point.t - 1, point.t, flags, point.n]);
  }
  return found;
}

function draw() {
  if (!points.length || !window.Plotly) return;
  const style = getComputedStyle(document.documentElement), color = name => style.getPropertyValue(`--${name}`).trim();
  const end = points.at(-1).t, x = points.map(point => point.t - end), narrow = innerWidth < 700;
  // A bar is the time since the point before, a second or a little more; where no frame was, none is. (A filled line takes a gap for zero.)
  const passed = points.map((point, index) => index && point.n === points[index - 1].n + 1 ? point.t - points[index - 1].t : 1);
  const bar = (y, name, axis, shade, unit) => ({x, y, name, type: 'bar', width: passed, offset: passed.map(width => -width), yaxis: axis,
    marker: {color: color(shade)}, hovertemplate: `${name} %{y:.1f} ${unit}<extra></extra>`});
  const line = (key, name, axis, unit, dash) => ({x, y: points.map(point => point[key]), name, yaxis: axis, mode: 'lines',
    line: {color: color(name), width: 1.6, dash, shape: dash ? 'linear' : 'hv'}, hovertemplate: `%{y:.1f} ${unit}<extra></extra>`});
  const stacked = points.map(point => point.ms && point.ms[0] + point.ms[1] + point.ms[2]), worst = points.map(point => point.worst);
  const top = Math.max(1, 1.25 * quantile(stacked, 1), Math.min(1.05 * quantile(worst, 1), 2 * quantile(worst, 0.95)));
  const above = worst.map(value => value > top);  // few: drawn at the top, with a mark, so that they flatten nothing
  const traces = [
    ...SLICES.slice(0, 3).map(([, name], index) => bar(points.map(point => point.ms && point.ms[index]), name, 'y', `s${index}`, 'ms')),
    {...line('worst', 'worst', 'y', 'ms at worst', 'dot'), y: worst.map((value, index) => above[index] ? 0.97 * top : value), customdata: worst,
      hovertemplate: '%{customdata:.1f} ms at worst<extra></extra>', mode: 'lines+markers',
      marker: {symbol: 'triangle-up', color: color('worst'), size: above.map(marked => marked ? 9 : 0)}},
    ...Object.entries(HOPS).map(([node, hop], index) => bar(points.map(point => point.drops[node] ?? null), hop, 'y2', `d${index}`, 'dropped/s')),
    line('celsius', 'heat', 'y3', '°C'), line('mhz', 'clock', 'y4', 'MHz')];
  const dropped = Math.max(1, ...points.map(point => Object.values(point.drops).reduce((sum, value) => sum + value, 0)));
  const celsius = points.map(point => point.celsius).filter(known);
  const span = Math.max(SHORTEST_S, -x[0]), step = [10, 30, 60].find(seconds => span / seconds <= 6.5) ?? 120, ticks = [];
  for (let back = 0; back <= span; back += step) ticks.push(-back);
  const moments = throttled().map(([from, to, flags]) => [Math.max(-span, from - end), to - end, flags]);
  const beside = (from, to) => from < -span / 2 ? {x: from, xanchor: 'left'} : {x: to, xanchor: 'right'};  // so that it stays in the chart
  const key = (name, text, mark = '■') => `<span style="color:${color(name)}">${mark}</span> ${text}`;
  const title = (y, name, parts) => ({text: `<b>${name}</b>${narrow ? '<br>' : '   '}${parts.join(narrow ? '  ' : '   ')}`, x: 0, y,
    xref: 'paper', yref: 'paper', xanchor: 'left', yanchor: 'bottom', showarrow: false, align: 'left', font: {size: narrow ? 11 : 12}});
  const axis = (domain, more) => ({domain, gridcolor: color('line'), zeroline: false, fixedrange: true, nticks: 5, rangemode: 'tozero',
    color: color('muted'), ...more});
  const layout = {
    height: $('chart').clientHeight, margin: {l: 44, r: 48, t: narrow ? 40 : 26, b: 34}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {family: style.fontFamily, size: 11, color: color('text')}, showlegend: false, barmode: 'stack', bargap: 0, hovermode: 'x',
    hoverlabel: {font: {size: 11}},
    xaxis: {range: [-span, 0], fixedrange: true, gridcolor: color('line'), zeroline: false, color: color('muted'), anchor: 'y3', hoverformat: '.0f',
      ticks: 'outside', ticklen: 5, tickcolor: 'rgba(0,0,0,0)', tickvals: ticks,
      ticktext: ticks.map(tick => !tick ? 'now' : step < 60 ? `${tick} s` : `${tick / 60} min`)},
    yaxis: axis([0.56, 1], {range: [0, top], title: {text: 'ms'}}), yaxis2: axis([0.34, 0.47], {range: [0, 1.1 * dropped], title: {text: '1/s'}, nticks: 3}),
    yaxis3: axis([0, 0.25], {title: {text: '°C'}, rangemode: 'normal',
      range: celsius.length ? [Math.min(40, ...celsius) - 2, Math.max(85, ...celsius) + 2] : [38, 87]}),
    yaxis4: axis([0, 0.25], {title: {text: 'MHz'}, range: [0, 1.1 * Math.max(1500, ...points.map(point => point.mhz))], tick0: 0, dtick: 500,
      overlaying: 'y3', side: 'right', showgrid: false, visible: points.some(point => known(point.mhz))}),
    annotations: [
      title(1, 'Latency', [key('s0', 'frame ready'), key('s1', 'inference'), key('s2', 'actuator'), key('worst', 'worst', above.includes(true) ? '┄▲' : '┄')]),
      title(0.47, 'Dropped', (narrow ? Object.keys(HOPS) : Object.values(HOPS)).map((text, index) => key(`d${index}`, text))),
      title(0.25, `Heat${points.some(point => point.simulated) ? ' (simulated)' : ''}${celsius.length ? '' : ', unknown'}`,
        [key('heat', 'temperature', '━'), key('clock', 'clock', '━'), key('bad', 'throttles at 80 °C', '┄')]),
      ...moments.map(([from, to, flags]) => ({text: flags, ...beside(from, to), y: 1, xref: 'x', yref: 'paper', yanchor: 'top', showarrow: false,
        font: {color: color('bad'), size: 10}}))],
    shapes: [{type: 'line', xref: 'paper', x0: 0, x1: 1, yref: 'y3', y0: 80, y1: 80, line: {color: color('bad'), width: 1, dash: 'dot'}},
      ...moments.map(([x0, x1]) => ({type: 'rect', xref: 'x', x0, x1, yref: 'paper', y0: 0, y1: 1, fillcolor: color('bad'), opacity: 0.13,
        line: {width: 0}, layer: 'below'}))],
  };
  Plotly.react('chart', traces, layout, {displayModeBar: false, responsive: true});
  set($('moments'), moments.length ? `${moments.length} throttle ${moments.length === 1 ? 'moment' : 'moments'}` : '');
}

async function loadHistory() {
  if (loading) return;
  loading = true;
  try {
    points = await (await fetch('history')).json();
    draw();
  } finally { loading = false; }
}

function onMessage(event) {
  last = JSON.parse(event.data);
  if (session && session !== last.session) location.reload();  // another run, another token
  session = last.session;
  offset = Math.min(offset + 0.001, clock() - last.t);
  const inference = last.nodes.find(node => node.name === 'inference');
  if (inference) set($('model'), [inference.values.Model, inference.values.Runtime].filter(Boolean).join(' · '));
  showResult();
  showLatency();
  showThermal();
  showActuator();
  showDrift();
  showAges();
  const point = last.point, newest = points.at(-1);
  if (!point || (newest && newest.n === point.n)) return;
  if (newest ? newest.n === point.n - 1 : point.n === 1) {
    points = [...points, point].slice(-HISTORY_S);
    draw();
  } else loadHistory();
}

async function order(name) {
  const answer = $('answer');
  set(answer, `${name} …`);
  answer.className = 'muted';
  const waiting = setTimeout(() => { set(answer, `${name}: no answer yet, nothing may have happened`); answer.className = 'warning'; }, ANSWER_S * 1000);
  try {
    const response = await fetch(name, {method: 'POST', headers: {'X-Token': token, 'X-Seen': String(last?.sent)}});
    set(answer, `${name}: ${(await response.text()).trim()}`);
    answer.className = response.ok ? 'muted' : 'warning';
  } catch (error) {
    set(answer, `${name} was NOT sent: no connection`);
    answer.className = 'warning';
  } finally { clearTimeout(waiting); }
}

$('stop').addEventListener('click', () => order('stop'));
$('arm').addEventListener('click', () => order($('arm').dataset.order || 'arm'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
addEventListener('resize', draw);
(function listen() {
  const events = new EventSource('events');
  events.addEventListener('message', onMessage);
  events.addEventListener('error', () => { if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000); });  // refused: not tried again by itself
})();
setInterval(showAges, 250);
