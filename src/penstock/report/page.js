// Draws the pictures of a report from the data that the page carries: no library, no network.
// Colours are in the style sheet, so light and dark need nothing here.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const LISTED = 8; // values that are listed for one moment

  // -- numbers as people read them ----------------------------------------------------------

  const grouped = (number, digits) =>
    number.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const mib = (nbytes) => {
    const value = nbytes / 2 ** 20;
    return `${grouped(value, Math.abs(value) >= 10 || !value ? 0 : 2)} MiB`;
  };
  const UNITS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]];
  const unitOf = (seconds) => UNITS.find(([unit]) => seconds >= unit) ?? UNITS[2];
  const duration = (seconds) => {
    const [unit, name] = seconds ? unitOf(seconds) : UNITS[0];
    return `${Number((seconds / unit).toPrecision(3))} ${name}`;
  };
  const spoken = (name) => name.replace("_", " ");

  /** Round numbers from `least` to `most`, about `count` of them. */
  function ticks(least, most, count) {
    const raw = (most - least) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
    const first = Math.ceil(least / step - 1e-9), last = Math.floor(most / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
  }

  // -- elements -----------------------------------------------------------------------------

  function draw(parent, tag, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  }

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  const swatch = (colour, kind = "") =>
    make("i", { className: kind, style: kind ? `border-color:${colour}` : `background:${colour}` });

  /** A button in `host` for each of `values`, of which one is chosen: `chosen`, if that is given. */
  function radios(host, name, values, choose, chosen) {
    host.append(...values.map((value) => {
      const input = make("input", { type: "radio", name, value, checked: value === chosen });
      input.addEventListener("change", () => choose(value));
      return make("label", {}, input, make("span", { textContent: value }));
    }));
  }

  const at = (number) => Math.round(number * 10) / 10;

  /** A box of lines beside the pointer, inside `host`; its top at `ceiling`, if that is given. */
  function tip(host, x, y, lines, ceiling) {
    hide(host);
    const [head, ...rest] = lines.filter(Boolean);
    const box = make("div", { className: "tip" }, make("b", { textContent: head }),
      ...rest.map((line) => make("span", { textContent: line })));
    host.append(box);
    const left = x + 16 + box.offsetWidth > host.clientWidth ? x - 16 - box.offsetWidth : x + 16;
    box.style.left = `${Math.max(0, Math.min(left, host.clientWidth - box.offsetWidth))}px`;
    box.style.top = `${ceiling ?? Math.max(0, y - box.offsetHeight - 12)}px`;
  }
  const hide = (host) => host.querySelector(".tip")?.remove();

  // -- one run of a step --------------------------------------------------------------------

  /** How many of the rising `times` are before `time`; with `upto`, also those at it. */
  function count(times, time, upto) {
    let low = 0, high = times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] < time || (upto && times[middle] === time)) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The position that holds at `time`. */
  const holding = (times, time) => Math.max(0, count(times, time, true) - 1);

  /** A run with what follows from it: for each kind the bytes below it, and the values by moment. */
  function understood(run, values) {
    const times = run.curve.times, kinds = DATA.kinds.filter((kind) => kind in run.curve.bytes);
    let below = times.map(() => 0);
    const bands = kinds.map((kind) => {
      const base = below, own = run.curve.bytes[kind];
      below = base.map((nbytes, n) => nbytes + own[n]);
      return { kind, base, top: below, own };
    });
    const { value = [], since = [], until = [] } = run.stays ?? {};
    const stays = value.map((row, n) => ({
      row, since: since[n], until: until[n], nbytes: values.nbytes[row], kind: values.kind[row],
    })).sort((one, other) => one.row - other.row); // rows are largest first
    const live = (time) => stays.filter((stay) => stay.since <= time && time < stay.until);
    return { ...run, times, bands, total: below, stays, live };
  }

  /** The outline of a step function, left to right. */
  function outline(times, heights, end, X, Y) {
    let path = "";
    heights.forEach((height, n) => { path += `${n ? "H" : "M"}${at(X(times[n]))}${n ? "V" : ","}${at(Y(height))}`; });
    return path && `${path}H${at(X(end))}`;
  }

  /** What lies between two step functions. */
  function area(times, base, top, end, X, Y) {
    let path = outline(times, top, end, X, Y);
    for (let n = times.length - 1; n >= 0; n--) path += `V${at(Y(base[n]))}H${at(X(times[n]))}`;
    return path && `${path}Z`;
  }

  /** Where in the stack one stay of a value lies: in its kind, above the larger ones. */
  function ribbon(run, stay, X, Y) {
    const band = run.bands.find(({ kind }) => kind === stay.kind);
    if (!band) return "";
    const shift = new Float64Array(run.times.length + 1);
    for (const other of run.stays) {
      if (other.row >= stay.row) break;
      if (other.kind !== stay.kind) continue;
      shift[count(run.times, other.since)] += other.nbytes;
      shift[count(run.times, other.until)] -= other.nbytes;
    }
    const times = [], base = [], top = [];
    let larger = 0;
    run.times.forEach((time, n) => {
      larger += shift[n];
      const next = run.times[n + 1] ?? run.seconds;
      if (next <= stay.since || time >= stay.until) return;
      const from = Math.min(band.base[n] + larger, band.top[n]);
      times.push(Math.max(time, stay.since));
      base.push(from);
      top.push(Math.min(from + stay.nbytes, band.top[n]));
    });
    return area(times, base, top, Math.min(stay.until, run.seconds), X, Y);
  }

  // -- memory and lanes ---------------------------------------------------------------------

  function pictures(panel, view) {
    const host = panel.querySelector(".chart"), moment = panel.querySelector(".moment");
    const runs = Object.fromEntries(
      Object.entries(view.runs).map(([name, run]) => [name, understood(run, view.values)]));
    const names = Object.keys(runs);
    const lanes = [...new Set(names.flatMap((name) => Object.keys(runs[name].lanes)))];
    const longest = Math.max(...names.map((name) => runs[name].seconds)) || 1;
    let shown = names.at(-1), scene = null; // what was measured, if anything was

    if (names.length > 1) {
      const group = `run-${panel.dataset.pictures}`;
      radios(panel.querySelector(".switch"), group, names, (name) => { shown = name; redraw(); }, shown);
    }

    function redraw() {
      const run = runs[shown], other = runs[names.find((name) => name !== shown)];
      const width = host.clientWidth, narrow = width < 560;
      const left = narrow ? 44 : 92, right = width - 6, top = 24, height = narrow ? 230 : 320;
      const pitch = narrow ? 33 : 25, bar = 15, first = top + height + (narrow ? 40 : 30);
      const highest = Math.max(run.peak, other?.peak ?? 0, ...(run.held?.bytes ?? []), 1);
      const inReach = view.budget < 1.7 * highest;
      const most = 1.07 * (inReach ? Math.max(highest, view.budget) : highest);
      const X = (time) => left + (Math.min(time, longest) / longest) * (right - left); // copies may outlast the step
      const Y = (nbytes) => top + height * (1 - nbytes / most);

      host.replaceChildren();
      const svg = draw(host, "svg", { height: first + lanes.length * pitch + 4 });
      const bottom = first + lanes.length * pitch - (pitch - bar);

      for (const [phase, start, end] of run.phases ?? []) {
        const room = X(end) - X(start);
        draw(svg, "rect", { class: "phase", x: at(X(start)), y: 0, height: 17, rx: 3,
          width: Math.max(1, at(room - 1.5)) });
        if (room > 7 * phase.length + 8) {
          draw(svg, "text", { x: at(X(start) + room / 2), y: 12.5, "text-anchor": "middle" }, phase);
        }
      }
      const [size, unit] = most >= 4 * 2 ** 30 ? [2 ** 30, "GiB"] : most >= 4 * 2 ** 20 ? [2 ** 20, "MiB"] : [2 ** 10, "KiB"];
      const levels = ticks(0, most / size, narrow ? 4 : 6);
      for (const level of levels) {
        const y = at(Y(level * size));
        draw(svg, "line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
        const last = level === levels.at(-1);
        draw(svg, "text", { x: left - 7, y: y + 4, "text-anchor": "end" }, level.toLocaleString("en-US"));
        if (last) draw(svg, "text", { x: left - 7, y: y - 9, "text-anchor": "end" }, unit);
      }
      const [second, secondName] = unitOf(longest);
      for (const time of ticks(0, longest / second, narrow ? 4 : 8)) {
        const x = at(X(time * second)), anchor = x > right - 20 ? "end" : "middle";
        draw(svg, "line", { class: "grid", x1: x, x2: x, y1: top + height, y2: bottom });
        draw(svg, "text", { x: Math.min(x, right), y: top + height + 15, "text-anchor": anchor },
          `${time} ${secondName}`);
      }

      for (const band of run.bands) {
        draw(svg, "path", { class: "area", "data-kind": band.kind, fill: `var(--kind-${band.kind})`,
          d: area(run.times, band.base, band.top, run.seconds, X, Y) });
      }
      const glow = draw(svg, "path", { class: "ribbon" });
      if (run.held?.times.length) {
        draw(svg, "path", { class: "held", d: outline(run.held.times, run.held.bytes, run.seconds, X, Y) });
      }
      if (other) {
        draw(svg, "path", { class: "total", d: outline(other.times, other.total, other.seconds, X, Y) });
      }
      if (inReach) {
        const y = at(Y(view.budget));
        draw(svg, "line", { class: "budget", x1: left, x2: right, y1: y, y2: y });
      }

      lanes.forEach((lane, row) => {
        const y = first + row * pitch;
        draw(svg, "rect", { class: "lane", x: left, y, width: right - left, height: bar, rx: 2 });
        draw(svg, "text", narrow ? { x: left, y: y - 4 } : { x: left - 7, y: y + 11.5, "text-anchor": "end" }, lane);
        const thick = other ? 10 : bar;
        draw(svg, "path", { class: "busy", fill: colourOf(lane), d: blocks(run.lanes[lane], y, thick, X) });
        if (other) {
          draw(svg, "path", { class: "busy other", fill: colourOf(lane),
            d: blocks(other.lanes[lane], y + thick + 1, bar - thick - 1, X) });
        }
      });
      const cursor = draw(svg, "line", { class: "cursor", y1: top, y2: bottom });
      scene = { run, other, X, Y, left, right, top, height, first, pitch, bar, most, glow, cursor, inReach };
      rest();
    }

    const colourOf = (lane) =>
      `var(--lane-${["compute", "recompute", "stall"].includes(lane) ? lane : "copy"})`;

    function blocks(stretches, y, height, X) {
      return (stretches ?? []).map(([start, end]) => {
        const x = X(start);
        return `M${at(x)},${y}h${Math.max(0.6, at(X(end) - x))}v${height}h${-Math.max(0.6, at(X(end) - x))}z`;
      }).join("");
    }

    // Without a pointer, the list tells of the fullest moment.
    function rest() {
      const { run } = scene;
      const peak = run.total.reduce((best, nbytes, n) => (nbytes > run.total[best] ? n : best), 0);
      hide(host);
      scene.glow.setAttribute("d", "");
      look(run.fullest?.seconds ?? run.times[peak] ?? 0, ", the fullest moment");
    }

    /** Move the cursor to a time, and list what is there. */
    function look(time, said = "") {
      const { run, other, X } = scene, n = holding(run.times, time);
      scene.time = time;
      scene.cursor.setAttribute("x1", at(X(time)));
      scene.cursor.setAttribute("x2", at(X(time)));
      const live = run.live(time).slice(0, LISTED);
      const legend = make("div", { className: "legend" });
      const entry = (mark, name, nbytes) => legend.append(
        make("span", {}, mark, name, make("b", { textContent: nbytes === null ? "" : mib(nbytes) })));
      for (const band of run.bands) entry(swatch(`var(--kind-${band.kind})`), spoken(band.kind), band.own[n]);
      if (run.held?.times.length) {
        const held = run.held.bytes[holding(run.held.times, time)];
        entry(swatch("var(--held)", "rule"), "held by the device", held);
      }
      if (other) {
        const total = other.total[holding(other.times, time)] ?? 0;
        entry(swatch("var(--ink)", "rule"), `${names.find((name) => name !== shown)}, in all`, total);
      }
      if (scene.inReach) entry(swatch("var(--budget)", "rule dashed"), "budget", view.budget);
      const running = stretch(run.lanes.compute, time) ?? stretch(run.lanes.recompute, time);
      const what = running ? `, ${running[2]}` : "";
      moment.replaceChildren(
        make("p", {}, make("b", { textContent: mib(run.total[n] ?? 0) }), ` at ${duration(time)}${said}${what}`),
        legend,
        make("ul", { className: "values" }, ...live.map((stay) => make("li", {},
          swatch(`var(--kind-${stay.kind})`),
          make("span", { textContent: view.values.name[stay.row] }, make("small", { textContent: about(stay) })),
          make("b", { textContent: mib(stay.nbytes) })))));
    }

    const about = (stay) => [
      view.values.module[stay.row], spoken(stay.kind), view.values.decision[stay.row] || "kept",
    ].filter(Boolean).join(" · ");

    const stretch = (stretches, time, slack = 0) =>
      (stretches ?? []).findLast(([start, end]) => start - slack <= time && time <= end + slack);

    function point(event) {
      const box = host.getBoundingClientRect(), { run, X, Y, left, right, top, height } = scene;
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const time = Math.max(0, Math.min(1, (x - left) / (right - left))) * longest;
      look(Math.min(time, run.seconds));
      scene.glow.setAttribute("d", "");
      if (y < top || x < left - 4) return hide(host);
      if (y > top + height) return lane(x, y, time);
      // On a phone the box would cover what it is about.
      const below = host.clientWidth < 560 ? top + height + 22 : undefined;
      const n = holding(run.times, time), nbytes = (1 - (y - top) / height) * scene.most;
      const band = run.bands.find(({ base, top: upto }) => base[n] <= nbytes && nbytes < upto[n]);
      if (!band || time > run.seconds) return hide(host);
      let reached = band.base[n];
      for (const stay of run.live(time)) {
        if (stay.kind !== band.kind) continue;
        reached += stay.nbytes;
        if (reached <= nbytes) continue;
        scene.glow.setAttribute("d", ribbon(run, stay, X, Y));
        const { name, module, decision } = view.values;
        return tip(host, x, y, [name[stay.row], module[stay.row] && `in ${module[stay.row]}`,
          `${spoken(stay.kind)}, ${mib(stay.nbytes)}, there from ${duration(stay.since)} to ${duration(stay.until)}`,
          decision[stay.row] || "kept"], below);
      }
      const rest = band.top[n] - reached;
      tip(host, x, y, [spoken(band.kind), `${mib(band.own[n])} at ${duration(time)}`,
        rest > 0 && reached > band.base[n] && `of which ${mib(rest)} in smaller values`], below);
    }

    function lane(x, y, time) {
      const { run, other, first, pitch, bar, left, right } = scene;
      const row = Math.floor((y - first + (pitch - bar) / 2) / pitch), name = lanes[row];
      const slack = (2 / (right - left)) * longest;
      const lower = other && y - first - row * pitch > 10;
      const found = name && stretch((lower ? other : run).lanes[name], time, slack);
      if (!found) return hide(host);
      const whose = names.length > 1 ? `, ${lower ? names.find((one) => one !== shown) : shown}` : "";
      tip(host, x, y, [found[2], `${name}${whose}`, `${duration(found[1] - found[0])}, from ${duration(found[0])}`]);
    }

    host.addEventListener("pointermove", point);
    host.addEventListener("pointerdown", point);
    host.addEventListener("pointerleave", rest);
    host.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      look(Math.max(0, Math.min(scene.run.seconds, scene.time + (step * longest) / 100)));
    });
    whenResized(host, redraw);
  }

  // -- step time over bytes -----------------------------------------------------------------

  const MARKS = [
    (x, y) => `M${x - 4},${y}a4,4 0 1 0 8,0a4,4 0 1 0 -8,0z`,
    (x, y) => `M${x - 3.5},${y - 3.5}h7v7h-7z`,
    (x, y) => `M${x},${y - 4.5}l4.5,8h-9z`,
    (x, y) => `M${x},${y - 5}l5,5l-5,5l-5,-5z`,
  ];
  const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

  /** The picture in `panel`. It returns what draws it: of `axis` (what the bytes are), `plain` (seconds),
   *  `front` and `limits` (bytes), and policies with `points`: bytes, seconds, and the lines that tell of
   *  it; where it was measured, also the bytes and seconds that were predicted. */
  function curve(panel) {
    const host = panel.querySelector(".chart"), legend = panel.querySelector(".legend");
    const colour = (n) => `var(--series-${n % 8})`, round = (n) => Math.floor(n / 8) % MARKS.length;
    const groups = [];
    let found = null, policies = [];

    function show(next) {
      found = next;
      policies = found.policies.map((policy, n) => ({ ...policy, n })).filter(({ points }) => points.length);
      redraw();
    }

    function redraw() {
      if (!found || !host.clientWidth) return;
      groups.length = 0;
      legend.replaceChildren();
      const every = policies.flatMap(({ points }) => points);
      if (!every.length) return host.replaceChildren("No policy found a plan that fits.");
      const width = host.clientWidth, narrow = width < 560;
      const left = narrow ? 44 : 62, right = width - 12, top = 12, height = narrow ? 240 : 330;
      const ghosts = every.flatMap(([, , , ghost]) => (ghost ? [ghost] : []));
      const shown = [...every, ...ghosts], bytes = shown.map(([nbytes]) => nbytes), times = shown.map(([, time]) => time);
      if (found.plain) times.push(found.plain);
      const least = Math.min(...bytes), most = Math.max(...bytes), span = most - least || most || 1;
      const fastest = Math.min(...times), slowest = Math.max(...times);
      const log = slowest > 3 * fastest && fastest > 0;
      const scale = log ? Math.log : (time) => time;
      const margin = 0.12 * (slowest - fastest || slowest || 1);
      const low = log ? scale(fastest / 1.15) : Math.max(0, fastest - margin);
      const high = log ? scale(slowest * 1.15) : slowest + margin;
      const X = (nbytes) => left + 10 + ((nbytes - least) / span) * (right - left - 20);
      const Y = (time) => top + height * (1 - (scale(time) - low) / (high - low));

      host.replaceChildren();
      const svg = draw(host, "svg", { height: top + height + 40 });
      const [second, secondName] = unitOf(slowest);
      for (const time of (log ? decades(fastest / 1.15, slowest * 1.15) : ticks(low, high, 6))) {
        const y = at(Y(time));
        draw(svg, "line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
        draw(svg, "text", { x: left - 7, y: y + 4, "text-anchor": "end" }, `${Number((time / second).toPrecision(3))} ${secondName}`);
      }
      const size = most >= 4 * 2 ** 30 ? 2 ** 30 : 2 ** 20;
      for (const level of ticks(least / size, (least + span) / size, narrow ? 4 : 8)) {
        const x = at(X(level * size));
        draw(svg, "line", { class: "grid", x1: x, x2: x, y1: top + height, y2: top + height + 5 });
        draw(svg, "text", { x, y: top + height + 18, "text-anchor": "middle" }, level.toLocaleString("en-US"));
      }
      draw(svg, "line", { class: "grid", x1: left, x2: right, y1: top + height, y2: top + height });
      draw(svg, "text", { x: right, y: top + height + 34, "text-anchor": "end" }, `${found.axis}, ${size === 2 ** 30 ? "GiB" : "MiB"}`);
      for (const nbytes of found.limits) {
        if (nbytes < least - span / 50 || nbytes > most + span / 50) continue;
        const x = at(X(nbytes));
        draw(svg, "line", { class: "budget", x1: x, x2: x, y1: top, y2: top + height });
      }
      if (found.plain) {
        const y = at(Y(found.plain));
        draw(svg, "line", { class: "plain", x1: left, x2: right, y1: y, y2: y });
      }
      const { front } = found;
      if (front.length) {
        draw(svg, "path", { class: "front",
          d: outline(front.map(([nbytes]) => nbytes), front.map(([, time]) => time), most, X, Y) });
      }
      for (const { points, n } of policies) {
        const group = draw(svg, "g", { class: "series" });
        const places = points.map(([nbytes, time]) => [at(X(nbytes)), at(Y(time))]);
        draw(group, "path", { d: `M${places.join("L")}`, stroke: colour(n), "stroke-dasharray": DASHES[round(n)] });
        points.forEach(([, , , ghost], k) => {
          if (!ghost) return;
          const [x, y] = [at(X(ghost[0])), at(Y(ghost[1]))];
          draw(group, "path", { class: "ghost", stroke: colour(n), d: `M${places[k]}L${x},${y}` });
          draw(group, "path", { class: "ghost mark", style: `stroke:${colour(n)}`, d: MARKS[round(n)](x, y) });
        });
        draw(group, "path", { class: "mark", style: `fill:${colour(n)}`, d: places.map(([x, y]) => MARKS[round(n)](x, y)).join("") });
        groups.push({ group, places });
      }
      legend.append(...policies.map(({ name, n }, k) => {
        const sample = draw(make("span", {}), "svg", { width: 26, height: 12, class: "series" });
        draw(sample, "path", { d: "M0,6H26", stroke: colour(n), "stroke-dasharray": DASHES[round(n)] });
        draw(sample, "path", { class: "mark", style: `fill:${colour(n)}`, d: MARKS[round(n)](13, 6) });
        const button = make("button", { type: "button" }, sample, name);
        for (const [event, one] of [["pointerenter", k], ["focus", k], ["pointerleave", -1], ["blur", -1]]) {
          button.addEventListener(event, () => highlight(one));
        }
        return button;
      }));
      const rule = (mark, name) => legend.append(make("span", {}, mark, name));
      if (found.plain) rule(swatch("var(--muted)", "rule dashed"), `without a budget ${duration(found.plain)}`);
      if (found.limits.length) rule(swatch("var(--budget)", "rule dashed"), found.limitsAre);
    }

    const highlight = (one) => groups.forEach(({ group }, k) => group.classList.toggle("faded", one >= 0 && k !== one));

    function decades(low, high) {
      const levels = [];
      for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
        for (const factor of [1, 2, 5]) levels.push(factor * power);
      }
      return levels.filter((level) => level >= low && level <= high);
    }

    function point(event) {
      const box = host.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      let nearest = null;
      groups.forEach(({ places }, one) => places.forEach(([px, py], k) => {
        const distance = Math.hypot(px - x, py - y);
        if (distance < (nearest?.distance ?? 30)) nearest = { distance, one, k };
      }));
      if (!nearest) return leave();
      highlight(nearest.one);
      tip(host, x, y, policies[nearest.one].points[nearest.k][2]);
    }
    const leave = () => { hide(host); highlight(-1); };

    host.addEventListener("pointermove", point);
    host.addEventListener("pointerdown", point);
    host.addEventListener("pointerleave", leave);
    whenResized(host, redraw);
    return show;
  }

  /** `2 s a step, 1.45x the step without a budget`; the first alone where there is nothing to compare with. */
  function ofPlain(seconds, plain) {
    const said = `${duration(seconds)} a step`;
    return plain ? `${said}, ${(seconds / plain).toFixed(seconds < 100 * plain ? 2 : 0)}x the step without a budget` : said;
  }

  /** The curve of one step over budgets. */
  function byBudget({ plain, policies, front }) {
    curve(document.getElementById("curve"))({
      plain, front, axis: "budget", limits: DATA.views.map(({ budget }) => budget), limitsAre: "budget of this report",
      policies: policies.map(({ name, points }) => ({ name, points: points.map(([budget, time, peak]) =>
        [budget, time, [name, `budget ${mib(budget)}, peak ${mib(peak)}`, ofPlain(time, plain)]]) })),
    });
  }

  // -- a comparison -------------------------------------------------------------------------

  /** Where in the lists of points that of a policy and a column stands. */
  const placeOf = ({ columns }, p, c) => p * columns.length + c;
  /** The step and the machine of a column. */
  const caseOf = ({ cases, columns }, c) => cases[columns[c].case];

  function comparison(board) {
    const { cases, columns, policies, points, problems } = board;
    const share = (nbytes, of) => (of ? `${Math.round((100 * nbytes) / of)}%` : "");
    const counted = (n, what) => n && `${grouped(n, 0)} ${what}${n === 1 ? "" : "s"}`;
    const listed = (...parts) => parts.filter(Boolean).join(", ");

    /** The figures of a cell, or the reason why there are none, as lines. */
    function told(p, c) {
      const n = placeOf(board, p, c), of = (name) => points[name]?.[n] ?? 0;
      const { budget, asked } = columns[c], { step, on, plain, full } = caseOf(board, c);
      const room = [asked, asked === mib(budget) || !budget ? "" : `(${mib(budget)})`].filter(Boolean).join(" ");
      const lines = [`${policies[p]} at ${room}`, board.measured ? `${step}, ${on}` : `${step} on ${on}`];
      const state = points.state[n];
      if (state === "late" || state === "none") return [...lines, problems[of("problem")]];
      if (state === "") return [...lines, "not asked"];
      if (state === "short") {
        const least = of("least");
        lines.push(least > budget
          ? `does not fit: this plan needs ${mib(least)}${full ? `, ${share(least, full)} of the plain step` : ""}`
          : "does not fit: the tiers below have too little room for it");
      }
      const foretold = of("foretold");
      const off = (predicted, measured) =>
        (measured ? ` (${predicted >= measured ? "+" : ""}${(100 * (predicted / measured - 1)).toFixed(1)} %)` : "");
      lines.push(ofPlain(of("seconds"), plain));
      if (foretold) lines.push(`predicted ${duration(foretold)}${off(foretold, of("seconds"))}`);
      lines.push(`peak ${mib(of("peak"))}${foretold ? `, predicted ${mib(of("foretold_peak"))}${off(of("foretold_peak"), of("peak"))}` : ""}`);
      lines.push(listed(counted(of("swaps"), "swap"), counted(of("recomputes"), "recomputation"),
        of("places") && `${counted(of("places"), "placement")} (simulated only)`)
        || (!of("moved") && !of("again") && "keeps everything"));
      lines.push(listed(of("moved") && `moves ${mib(of("moved"))}`, of("stalled") && `waits ${duration(of("stalled"))}`,
        of("again") && `computes ${duration(of("again"))} again`));
      lines.push(`planned in ${duration(of("took"))}${of("cut") ? "; its own time limit ended the search: it is not proven the best" : ""}`);
      return lines.filter(Boolean);
    }

    const drawCurve = curve(document.getElementById("curve"));
    const chosen = document.querySelector("#curve select");
    function curveOf(number) {
      const { plain, front } = cases[number];
      const own = columns.flatMap((column, c) => (column.case === number ? [c] : []));
      drawCurve({
        plain, front, axis: "peak", limits: own.map((c) => columns[c].budget), limitsAre: "budgets",
        policies: policies.map((name, p) => ({ name, points: own.filter((c) => points.state[placeOf(board, p, c)] === "fits").map((c) => {
          const n = placeOf(board, p, c), foretold = points.foretold?.[n];
          return [points.peak[n], points.seconds[n], told(p, c), foretold ? [points.foretold_peak[n], foretold] : undefined];
        }) })),
      });
    }
    chosen?.addEventListener("change", () => curveOf(+chosen.value));
    curveOf(0);
    heat(document.getElementById("heat"), board, told, (number) => {
      if (!chosen || +chosen.value === number) return;
      chosen.value = number;
      curveOf(number);
    });
  }

  /** The table of policies by columns, with a colour for each slowdown. A cell that is chosen calls `choose`
   *  with its case. */
  function heat(panel, board, told, choose) {
    const { columns, policies, points } = board;
    const host = panel.querySelector(".map"), moment = panel.querySelector(".moment");
    const filters = [...panel.querySelectorAll("select")];
    const SMALL = 3, FIGURES = 38, WIDEST = 78; // pixels of a cell
    let wanted = null, shown = [];

    const slowdown = (n, { plain }) => (plain ? points.seconds[n] / plain : NaN);
    const shade = (ratio) => { const n = DATA.heat.findIndex((bound) => ratio < bound); return n < 0 ? DATA.heat.length : n; };
    const figure = (ratio) => (Number.isNaN(ratio) ? "?" : ratio < 10 ? ratio.toFixed(2) : ratio < 100 ? ratio.toFixed(1) : ratio.toFixed(0));

    /** What a cell shows: its classes and its text. */
    function seen(p, c) {
      const n = placeOf(board, p, c), { budget, best } = columns[c], of = caseOf(board, c);
      switch (points.state[n]) {
        case "fits": {
          const ratio = slowdown(n, of), cut = points.cut[n];
          const classes = [`h${Number.isNaN(ratio) ? 0 : shade(ratio)}`, cut && "cut", best.includes(policies[p]) && "won"];
          return [classes.filter(Boolean).join(" "), `${cut ? "~" : ""}${figure(ratio)}`];
        }
        case "short": {
          const least = points.least[n];
          return ["short", least <= budget ? "tier" : of.full ? `≥${Math.ceil((100 * least) / of.full)}%` : "no"];
        }
        case "late": return ["late", "time"];
        case "none": return ["none", "×"];
        default: return ["", ""];
      }
    }

    /** Neighbours of one name become one header cell. */
    function header(name, of, size) {
      const cells = [];
      for (const c of shown) {
        const text = of(c), last = cells.at(-1);
        if (last && last.text === text && name !== "budget") last.span += 1;
        else cells.push({ text, span: 1 });
      }
      return `<tr class="${name}"><th scope="row">${name}</th>${cells.map(({ text, span }) => {
        const room = span * size, turned = room < 7 * text.length + 6;
        const inside = room < 11 ? "" : `<span${turned ? ' class="turned"' : ""} style="max-width:${turned ? 90 : room - 4}px">${escaped(text)}</span>`;
        return `<th scope="col" colspan="${span}" title="${escaped(text)}">${inside}</th>`;
      }).join("")}</tr>`;
    }
    const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

    function redraw() {
      const [step, on] = ["step", "on"].map((what) => filters.find((one) => one.dataset.of === what)?.value ?? "");
      shown = columns.flatMap((_, c) => {
        const of = caseOf(board, c);
        return (!step || of.step === step) && (!on || of.on === on) ? [c] : [];
      });
      const width = panel.querySelector(".beside").clientWidth, names = width < 560 ? 92 : 112;
      const room = Math.floor((8 * (width - names)) / Math.max(1, shown.length)) / 8;
      const small = (wanted ?? (room >= FIGURES ? "figures" : "overview")) === "overview";
      const size = small ? Math.max(SMALL, Math.min(26, room)) : Math.max(FIGURES + 4, Math.min(WIDEST, room));
      const several = (of) => new Set(shown.map(of)).size > 1;
      const stepOf = (c) => caseOf(board, c).step, machineOf = (c) => caseOf(board, c).on;
      const starts = new Set(shown.filter((c, k) => k && columns[shown[k - 1]].case !== columns[c].case));
      const heads = [
        several(stepOf) && header("step", stepOf, size),
        several(machineOf) && header("machine", machineOf, size),
        header("budget", (c) => columns[c].asked, size),
      ];
      const rows = policies.map((policy, p) => `<tr><th scope="row" title="${escaped(policy)}">${escaped(policy)}</th>${shown.map((c) => {
        const [classes, text] = seen(p, c);
        return `<td class="${classes}${starts.has(c) ? " first" : ""}" data-p="${p}" data-c="${c}" tabindex="-1">${text}</td>`;
      }).join("")}</tr>`);
      host.innerHTML = `<div class="wide"><table role="grid" class="${small ? "small" : ""}${size < 5 ? " tiny" : ""}" style="width:${names + size * shown.length}px">
        <colgroup><col style="width:${names}px"><col span="${shown.length}" style="width:${size}px"></colgroup>
        <thead>${heads.filter(Boolean).join("")}</thead><tbody>${rows.join("")}</tbody></table></div>`;
      for (const input of panel.querySelectorAll(".switch input")) input.checked = (input.value === "overview") === small;
      const first = host.querySelector("td");
      if (first) first.tabIndex = 0;
      if (first && !moment.textContent) tell(first);
    }

    const cell = (p, c) => host.querySelector(`td[data-p="${p}"][data-c="${c}"]`);
    const facts = (td) => told(+td.dataset.p, +td.dataset.c);

    function tell(td) {
      const [head, ...lines] = facts(td);
      moment.replaceChildren(make("p", {}, make("b", { textContent: head })),
        make("ul", { className: "facts" }, ...lines.map((line) => make("li", { textContent: line }))));
    }

    function choosing(td) {
      host.querySelector('td[tabindex="0"]')?.setAttribute("tabindex", "-1");
      td.tabIndex = 0;
      td.setAttribute("aria-label", facts(td).join("; "));
      tell(td);
      choose(columns[td.dataset.c].case);
    }

    function near(td) {
      const box = host.getBoundingClientRect(), { left, top, height } = td.getBoundingClientRect();
      tip(host, left - box.left, top - box.top, facts(td), top - box.top + height + 6);
    }

    host.addEventListener("pointerover", (event) => {
      const td = event.target.closest("td");
      if (td) near(td); else hide(host);
    });
    host.addEventListener("pointerleave", () => hide(host));
    host.addEventListener("focusin", ({ target }) => { if (target.matches("td")) { choosing(target); near(target); } });
    host.addEventListener("focusout", () => hide(host));
    host.addEventListener("scroll", () => {
      const td = document.activeElement;
      if (host.contains(td) && td.matches("td")) near(td); else hide(host);
    }, true);
    host.addEventListener("keydown", (event) => {
      const td = event.target.closest("td");
      if (!td) return;
      if (event.key === "Escape") return hide(host);
      const p = +td.dataset.p, k = shown.indexOf(+td.dataset.c), last = shown.length - 1;
      const next = { ArrowLeft: [p, k - 1], ArrowRight: [p, k + 1], ArrowUp: [p - 1, k], ArrowDown: [p + 1, k],
        Home: [p, 0], End: [p, last] }[event.key];
      if (!next) return;
      event.preventDefault();
      const [row, column] = next;
      if (row >= 0 && row < policies.length && column >= 0 && column <= last) cell(row, shown[column]).focus();
    });

    radios(panel.querySelector(".switch"), "cells", ["figures", "overview"], (value) => { wanted = value; redraw(); });
    for (const one of filters) {
      one.addEventListener("change", () => {
        redraw();
        if (shown.length) choose(columns[shown[0]].case);
      });
    }
    const sample = (classes, text, name) => make("span", {}, make("i", { className: `heat ${classes}`, textContent: text }), name);
    const bounds = DATA.heat.map((bound, n) => sample(`h${n}`, "", n ? `to ${bound}x` : "no cost"));
    panel.querySelector(".legend").append(...bounds, sample(`h${DATA.heat.length}`, "", "more"),
      sample("h2 won", "1.03", "fastest there"), sample("h2 cut", "~1.03", "stopped by its own time limit: not proven"),
      sample("short", "≥46%", "does not fit: it needs this much of the plain step"), sample("short", "tier", "too little room in the tiers below"),
      sample("late", "time", "given up"), sample("none", "×", "no plan"));
    whenResized(panel, redraw);
  }

  // -- the page -----------------------------------------------------------------------------

  /** Draw now, or as soon as `host` can be seen, and again when its width changes. */
  function whenResized(host, redraw) {
    let width = 0;
    const look = () => {
      if (host.clientWidth && host.clientWidth !== width) { width = host.clientWidth; redraw(); }
    };
    look();
    new ResizeObserver(look).observe(host);
  }

  const views = [...document.querySelectorAll(".view")];
  for (const input of document.querySelectorAll(".choice input")) {
    input.addEventListener("change", () => {
      views.forEach((view) => { view.hidden = view.dataset.view !== input.value; });
    });
  }
  for (const panel of document.querySelectorAll("[data-pictures]")) {
    pictures(panel, DATA.views[panel.dataset.pictures]);
  }
  if (DATA.curve) byBudget(DATA.curve);
  if (DATA.comparison?.cases.length) comparison(DATA.comparison);
  // For those who measure: the milliseconds from the navigation to the first frame.
  requestAnimationFrame(() => { document.documentElement.dataset.drawn = performance.now().toFixed(0); });
})();
