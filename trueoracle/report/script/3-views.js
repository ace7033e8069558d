// The linked views: each draws into its own element from what is chosen.

const SMALL = 300;
const SYMBOLS = { domain: ["candidate", "anomaly", "chosen"], range: ["circle", "diamond", "star"] };

/** The points of a scatter: candidates with both values, and what each is. */
function pointsOf(network, scores, outcomes, relation) {
  const [stars, better] = [new Set(relation?.chosen ?? []), new Set(relation?.better ?? [])];
  const items = [];
  scores.forEach((x, place) => {
    const y = outcomes[place];
    if (x === null || y === null || y === undefined) return;
    const kind = stars.has(place) ? "chosen" : better.has(place) ? "anomaly" : "candidate";
    items.push({ x, y, kind, ids: [network.ids[place]], lines: [...candidateLines(network, place), ...(kind === "candidate" ? [] : [kind])] });
  });
  return items;
}

function scatter(root, items, { label, x, y, relation, domain = {}, height }) {
  if (!items.length) return nothing(root, "No candidate has both a score and this outcome yet.");
  const width = root.clientWidth || 640;
  const lines = relation?.outcome == null ? [] : [
    Plot.ruleX([relation.score], { className: "guide", stroke: "var(--guide)", strokeDasharray: "4 3" }),
    Plot.ruleY([relation.outcome], { stroke: "var(--guide)", strokeDasharray: "4 3" }),
  ];
  draw(root, label, {
    height: height ?? Math.min(460, Math.max(280, width * 0.55)),
    grid: true, inset: 12, marginLeft: 56, marginBottom: 42,
    x: { label: x, labelAnchor: "center", ticks: Math.max(3, width / 130), ...domain.x },
    y: { label: y, ...domain.y },
    symbol: SYMBOLS,
    marks: [
      ...lines,
      Plot.dot(items, {
        x: "x", y: "y", symbol: "kind", r: items.length > SMALL ? 3 : 4.5,
        ...focusable(items, `${label}: candidates from left to right`),
      }),
    ],
  });
}

function nothing(root, words) {
  root.replaceChildren(element("p", { class: "soft" }, words));
}

function title(study, about = "") {
  const name = about ? `${study.label} · ${about}` : study.label;
  return element("h3", { class: "what" }, name, ...(study.badge ? [" ", element("span", { class: "badge" }, study.badge)] : []));
}

function legend(...extra) {
  return element(
    "p", { class: "legend" },
    element("span", { class: "key candidate", "aria-hidden": "true" }, "●"), " candidate  ",
    element("span", { class: "key anomaly", "aria-hidden": "true" }, "◆"), " anomaly: ends better than the chosen  ",
    element("span", { class: "key chosen", "aria-hidden": "true" }, "★"), " chosen", ...extra,
  );
}

const VIEWS = {
  scatter(root) {
    const { study, network, outcome, relation } = chosen();
    const scores = network.scores[state.criterion];
    const items = pointsOf(network, scores, network.outcomes[state.outcome][state.seed] ?? [], relation);
    const label = `${state.criterion} against ${outcome.name}`;
    const plot = element("div", { class: "plot" });
    const words = data.criteria.find((one) => one.name === state.criterion).label;
    root.replaceChildren(
      title(study, study.over > 1 ? `dense network ${network.label}` : ""),
      plot, legend(),
      element("p", { class: "facts-line" }, relation?.facts ?? "Nothing is known of this criterion and outcome yet."),
      element("p", {}, state.seed === "mean" ? (study.relations[state.criterion]?.[state.outcome]?.verdict ?? "") : "One seed alone: verdicts and intervals are over all seeds."),
    );
    scatter(plot, items, { label, x: `${words} (the lowest is chosen)`, y: outcome.axis, relation });
  },

  ladder(root) {
    const { study, network, outcome } = chosen();
    const mean = state.seed === "mean";
    const items = data.criteria
      .map(({ name }) => {
        const known = mean ? study.relations[name]?.[state.outcome] : network.relations[name]?.[state.outcome]?.[state.seed];
        if (!known || known.agreement === null) return null;
        const around = known.low == null ? "" : ` [${hundredths(known.low)}, ${hundredths(known.high)}]`;
        return {
          name, ...known, ids: [], kind: known.certain ? "sure" : "unsure",
          lines: [`${name}: agreement ${hundredths(known.agreement)}${around}`, ...(known.answer ? [`answer: ${known.answer}`] : [])],
          take: () => choose({ criterion: name }), picked: () => state.criterion === name,
        };
      })
      .filter(Boolean)
      .sort((a, b) => b.agreement - a.agreement);
    if (!items.length) return nothing(root, "No agreement is known yet.");
    const ceiling = mean ? study.ceilings[state.outcome] : null;
    const plot = element("div", { class: "plot" });
    root.replaceChildren(
      title(study),
      plot,
      element("p", { class: "legend" },
        mean ? "● certain not to be zero  ○ not certain; bars: 95% intervals" : "One seed alone: without intervals",
        ceiling == null ? "" : `; dashed: about what noise leaves to any criterion (${hundredths(ceiling)})`, ". Take one to see it above."),
    );
    const wide = Math.max(...items.map((one) => Math.min(one.name.length, 24)));
    draw(plot, `Criteria by agreement with ${outcome.name}`, {
      height: 22 * items.length + 60, marginLeft: 16 + 7 * wide, marginRight: 20,
      x: { label: `agreement with ${outcome.name}`, labelAnchor: "center", grid: true },
      y: { type: "band", domain: items.map((one) => one.name), label: null, tickSize: 0, tickFormat: (name) => (name.length > 24 ? `${name.slice(0, 23)}…` : name) },
      marks: [
        Plot.ruleX([0], { stroke: "var(--guide)" }),
        ...(ceiling == null ? [] : [Plot.ruleX([ceiling], { stroke: "var(--accent)", strokeDasharray: "4 3" })]),
        Plot.ruleY(items.filter((one) => one.low != null), { y: "name", x1: "low", x2: "high", stroke: "var(--usual)", strokeWidth: 1.6 }),
        Plot.dot(items, { x: "agreement", y: "name", r: 5.5, ...focusable(items, "criteria from the best down", { along: "y" }) }),
      ],
    });
  },

  curves(root) {
    const { study, network, outcome } = chosen();
    const curves = network.curves[state.outcome];
    if (!curves) return nothing(root, "No epoch is recorded of this outcome.");
    const plot = element("div", { class: "plot", id: "curves-plot" });
    const every = curves.stride > 1 ? ` Of every ${curves.stride} epochs one is drawn.` : "";
    root.replaceChildren(
      title(study, `${study.epochs} epochs, ${state.seed === "mean" ? "mean over seeds" : `seed ${state.seed}`}`),
      plot,
      element("p", { class: "legend" }, `Grey: all candidates, the middle half of them and their median by epoch. Lines: the chosen one (★), those that are picked, and the one under the pointer.${every}`),
    );
    drawCurves(plot, network, outcome, curves);
  },

  short(root) {
    const { study, network, outcome } = chosen();
    const short = network.short?.[state.outcome];
    if (!short) return nothing(root, "This study has no short retraining recorded.");
    const plot = element("div", { class: "plot" });
    root.replaceChildren(
      title(study),
      plot, legend(), element("p", { class: "facts-line" }, short.facts),
    );
    const items = pointsOf(network, short.values, network.outcomes[state.outcome].mean, short);
    scatter(plot, items, { label: "Short against full retraining", x: short.label, y: outcome.axis, relation: short });
  },

  filters(root) {
    const { study, network, outcome } = chosen();
    const worth = network.worth?.[state.outcome];
    if (!worth) return nothing(root, "Candidates of this study do not prune filters, so that none can be compared.");
    const left = element("div", { class: "plot" });
    const right = element("div", { class: "plot" });
    const pictures = network.kernels.length
      ? element("ul", { class: "kernels", "aria-label": "Kernels of the filters" }, ...network.filters.map((name, place) =>
          element("li", {}, element("img", { src: network.kernels[place], alt: `kernel of ${name}` }), element("span", {}, name))))
      : null;
    root.replaceChildren(
      title(study, study.over > 1 ? `dense network ${network.label}` : ""),
      element("div", { class: "two" }, left, right),
      element("p", { class: "legend" }, "Left: mean outcome of the candidates that prune a filter (●) and that keep it (○), and what a sum over filters, fitted to all candidates, makes of pruning it (×), over all seeds. Right: mean outcome of the candidates that prune both."),
      ...(pictures ? [pictures, element("p", { class: "legend" }, "The kernels of the dense network: grey is zero, white positive, black negative.")] : []),
    );
    filterPlot(left, network, worth, outcome);
    pairPlot(right, network, worth, outcome);
  },

  arms(root) {
    const { outcome } = chosen();
    const parts = data.studies.flatMap((study) => study.networks.map((network) => ({ study, network })))
      .filter(({ network }) => network.scores[state.criterion] && network.outcomes[state.outcome])
      .map((part) => {
        const relation = part.network.relations[state.criterion]?.[state.outcome]?.[state.seed] ?? part.network.relations[state.criterion]?.[state.outcome]?.mean;
        const outcomes = part.network.outcomes[state.outcome][state.seed] ?? part.network.outcomes[state.outcome].mean;
        return { ...part, relation, items: pointsOf(part.network, part.network.scores[state.criterion], outcomes, relation) };
      });
    const all = parts.flatMap((one) => one.items);
    if (!all.length) return nothing(root, "Nothing to compare yet.");
    const extent = (key) => ({ domain: [Math.min(...all.map((one) => one[key])), Math.max(...all.map((one) => one[key]))] });
    const cells = parts.map(({ study, network, relation }) => {
      const plot = element("div", { class: "plot" });
      return { plot, cell: element("div", {}, title(study, study.over > 1 ? `network ${network.label}` : ""), plot, element("p", { class: "facts-line" }, relation?.facts ?? "")) };
    });
    root.replaceChildren(element("div", { class: "several" }, ...cells.map((one) => one.cell)));
    parts.forEach((part, place) =>
      scatter(cells[place].plot, part.items, {
        label: `${part.study.label}${part.study.over > 1 ? ` network ${part.network.label}` : ""}: ${state.criterion} against ${outcome.name}`,
        x: state.criterion, y: outcome.axis, relation: part.relation, domain: { x: extent("x"), y: extent("y") }, height: 260,
      }));
  },

  alike(root) {
    const { study } = chosen();
    const { alike } = study;
    if (!alike) return nothing(root, "One criterion alone: there is nothing to compare it with.");
    const order = (alike.order ?? alike.criteria).map((one) => (typeof one === "string" ? alike.criteria.indexOf(one) : one));
    const names = order.map((place) => alike.criteria[place]);
    const items = order.flatMap((i) => order.map((j) => ({
      x: alike.criteria[j], y: alike.criteria[i], value: alike.tau[i][j], ids: [],
      lines: [`${alike.criteria[i]} and ${alike.criteria[j]}: ${hundredths(alike.tau[i][j])}`],
      take: () => choose({ criterion: alike.criteria[i] }), picked: () => false,
    })));
    const plot = element("div", { class: "plot middle" });
    root.replaceChildren(plot, element("p", { class: "legend" }, "Blue: two criteria order the candidates alike; orange: against each other."));
    heat(plot, "Rank agreement of criteria", names, items, [-1, 1], names.length <= 12);
  },

  trend(root) {
    const { outcome } = chosen();
    const rows = data.grid.trend.filter((one) => one.outcome === state.outcome && one.agreement !== null);
    const own = rows.filter((one) => one.criterion === state.criterion);
    if (!own.length) return nothing(root, "No point of the grid has this criterion and outcome.");
    const number = own.every((one) => typeof one.at === "number");
    const items = own.map((one) => ({
      ...one, ids: [], kind: one.certain ? "sure" : "unsure",
      lines: [`${one.label}: agreement ${hundredths(one.agreement)}${one.low == null ? "" : ` [${hundredths(one.low)}, ${hundredths(one.high)}]`}`, `answer: ${one.answer}`],
      take: () => choose({ study: String(one.study), network: "0" }), picked: () => state.study === String(one.study),
    }));
    const lines = [...new Set(items.map((one) => one.line))];
    const plot = element("div", { class: "plot" });
    root.replaceChildren(plot, element("p", { class: "legend" }, "● certain not to be zero  ○ not certain; bars: 95% intervals; dashed: about what noise leaves. Take a point to see its study.",
      lines.length > 1 ? ` Lines: ${lines.join("; ")}.` : ""));
    draw(plot, `Agreement of ${state.criterion} with ${outcome.name} over ${data.grid.axis}`, {
      height: 320, inset: 14, marginLeft: 56, marginBottom: 42,
      x: { label: data.grid.axis, labelAnchor: "center", type: number ? "linear" : "point", ...(number ? { ticks: [...new Set(items.map((one) => one.at))] } : { domain: [...new Set(items.map((one) => one.at))] }) },
      y: { label: `agreement with ${outcome.name}`, grid: true },
      marks: [
        Plot.ruleY([0], { stroke: "var(--guide)" }),
        Plot.line(items, { x: "at", y: "agreement", z: "line", stroke: "var(--usual)" }),
        Plot.line(items.filter((one) => one.ceiling !== null), { x: "at", y: "ceiling", z: "line", stroke: "var(--accent)", strokeDasharray: "4 3" }),
        Plot.ruleX(items.filter((one) => one.low !== null), { x: "at", y1: "low", y2: "high", stroke: "var(--usual)" }),
        Plot.dot(items, { x: "at", y: "agreement", r: 5.5, ...focusable(items, "studies of the grid from left to right") }),
      ],
    });
  },

  forest(root) {
    const { outcome } = chosen();
    const metas = data.grid.meta.filter((one) => one.criterion === state.criterion && one.outcome === state.outcome);
    if (!metas.length) return nothing(root, "Two studies at least are needed for a mean over them.");
    root.replaceChildren(...metas.flatMap((meta) => {
      const items = [...meta.studies, { label: "all together", agreement: meta.agreement, low: meta.low, high: meta.high, all: true }].map((one) => ({
        ...one, ids: [], kind: one.all ? "chosen" : "candidate", picked: () => false, take: () => {},
        lines: [`${one.label}: agreement ${hundredths(one.agreement)}${one.low == null ? "" : ` [${hundredths(one.low)}, ${hundredths(one.high)}]`}`],
      }));
      const plot = element("div", { class: "plot" });
      plot.later = () => draw(plot, `Agreement of ${state.criterion} with ${outcome.name}, study by study`, {
        height: 22 * items.length + 60, marginLeft: 16 + 6.5 * Math.max(...items.map((one) => Math.min(one.label.length, 30))), marginRight: 20,
        x: { label: `agreement with ${outcome.name}`, labelAnchor: "center", grid: true },
        y: { type: "band", domain: items.map((one) => one.label), label: null, tickSize: 0, tickFormat: (name) => (name.length > 30 ? `${name.slice(0, 29)}…` : name) },
        symbol: { domain: ["candidate", "chosen"], range: ["square", "diamond2"] },
        marks: [
          Plot.ruleX([0], { stroke: "var(--guide)" }),
          Plot.ruleY(items.filter((one) => one.low != null), { y: "label", x1: "low", x2: "high", stroke: "var(--usual)", strokeWidth: 1.6 }),
          Plot.dot(items, { x: "agreement", y: "label", symbol: "kind", r: 5, ...focusable(items, "studies from the top down", { along: "y" }) }),
        ],
      });
      return [element("p", {}, meta.words), plot];
    }));
    for (const plot of root.querySelectorAll(".plot")) plot.later();
  },
};

function filterPlot(root, network, worth, outcome) {
  const items = network.filters.map((name, place) => ({
    name, pruned: worth.pruned[place], kept: worth.kept[place], fitted: worth.fitted[place],
    ids: network.ids.filter((_, row) => network.prunes[row]?.includes(place)),
    lines: [`${name}: mean ${outcome.name} ${shown(worth.pruned[place])} pruned, ${shown(worth.kept[place])} kept`, `in a sum over filters, pruning it adds ${shown(worth.additive[place])}`],
    kind: "candidate", take: () => choose({ filter: name }), picked: () => state.filter === name,
  })).filter((one) => one.pruned !== null);
  draw(root, `What pruning each filter comes to: ${outcome.name}`, {
    height: 18 * items.length + 70, marginLeft: 16 + 7 * Math.max(...items.map((one) => one.name.length)), marginRight: 16,
    x: { label: outcome.axis, labelAnchor: "center", grid: true, ticks: 4 },
    y: { type: "band", domain: items.map((one) => one.name), label: null, tickSize: 0 },
    marks: [
      Plot.link(items.filter((one) => one.kept !== null), { x1: "kept", x2: "pruned", y1: "name", y2: "name", stroke: "var(--guide)" }),
      Plot.dot(items.filter((one) => one.kept !== null), { x: "kept", y: "name", r: 4, stroke: "var(--usual)" }),
      Plot.dot(items, { x: "pruned", y: "name", r: 5, ...focusable(items, "filters from the top down: those that prune it light up", { along: "y" }) }),
      Plot.dot(items.filter((one) => one.fitted !== null), { className: "fitted", x: "fitted", y: "name", r: 3.5, symbol: "times", stroke: "var(--anomaly)", strokeWidth: 2, pointerEvents: "none" }),
    ],
  });
}

function pairPlot(root, network, worth, outcome) {
  if (!worth.pairs) return nothing(root, "Filters are too many for a picture of their pairs.");
  const items = network.filters.flatMap((one, i) => network.filters.map((other, j) => ({
    x: other, y: one, value: worth.pairs[i][j],
    ids: network.ids.filter((_, row) => network.prunes[row]?.includes(i) && network.prunes[row]?.includes(j)),
    lines: [`${one} and ${other} pruned: mean ${outcome.name} ${shown(worth.pairs[i][j])}`],
    picked: () => false, take: () => {},
  }))).filter((one) => one.value !== null);
  if (!items.length) return nothing(root, "No candidate prunes two filters.");
  const values = items.map((one) => one.value);
  heat(root, `Pairs of filters: ${outcome.name}`, network.filters, items, [Math.min(...values), Math.max(...values)], false, !outcome.higher);
}

/** A heat map whose cells can be focused. */
function heat(root, label, names, items, domain, text, reverse = false) {
  const width = root.clientWidth || 500;
  const margin = 16 + 6.5 * Math.max(...names.map((name) => Math.min(name.length, 18)));
  const cut = (name) => (name.length > 18 ? `${name.slice(0, 17)}…` : name);
  draw(root, label, {
    height: Math.min(width, 24 * names.length + margin + 40), marginLeft: margin, marginBottom: margin, padding: 0.04,
    x: { domain: names, label: null, tickRotate: -60, tickSize: 0, tickFormat: cut },
    y: { domain: names, label: null, tickSize: 0, tickFormat: cut },
    color: { domain, range: reverse ? ["#2f7fb8", "#f3f0e9", "#cc5f10"] : ["#cc5f10", "#f3f0e9", "#2f7fb8"], type: "linear", interpolate: "rgb", ...(domain[0] < 0 && domain[1] > 0 ? { domain: [domain[0], 0, domain[1]] } : { domain: [domain[0], (domain[0] + domain[1]) / 2, domain[1]] }) },
    marks: [
      Plot.cell(items, { x: "x", y: "y", fill: "value", ...focusable(items, `${label}, cell by cell`, { along: "y" }) }),
      ...(text ? [Plot.text(items, { x: "x", y: "y", text: (one) => (one.value === null ? "" : one.value.toFixed(2).replace("-", "−")), fill: "#111", fontSize: 10, pointerEvents: "none" })] : []),
    ],
  });
}

// Learning curves.

const decoded = new WeakMap();

/** The curve of a candidate, from 16-bit levels: one value per epoch, null where there is none. */
function curveOf(curves, place, seed) {
  if (!decoded.has(curves)) {
    const bytes = Uint8Array.from(atob(curves.levels), (one) => one.charCodeAt(0));
    decoded.set(curves, new DataView(bytes.buffer));
  }
  const view = decoded.get(curves);
  const seeds = seed === "mean" ? curves.seeds.map((_, one) => one) : [curves.seeds.indexOf(seed)];
  return curves.epochs.map((_, epoch) => {
    const known = seeds
      .map((one) => view.getUint16(2 * ((place * curves.seeds.length + one) * curves.epochs.length + epoch), true))
      .filter((level) => level <= 65534);
    if (!known.length) return null;
    return curves.low + ((curves.high - curves.low) * known.reduce((a, b) => a + b, 0)) / known.length / 65534;
  });
}

let drawLitCurves = () => {};

function drawCurves(plot, network, outcome, curves) {
  const spread = curves.spread[state.seed] ?? curves.spread.mean;
  const band = curves.epochs.map((epoch, at) => ({ epoch, low: spread[0][at], lower: spread[1][at], middle: spread[2][at], upper: spread[3][at], high: spread[4][at] }))
    .filter((one) => one.low !== null);
  const relation = network.relations[state.criterion]?.[state.outcome]?.[state.seed];
  const again = () => {
    const wanted = new Map();
    if (relation?.chosen.length === 1) wanted.set(relation.chosen[0], "chosen");
    for (const id of state.picked) if (network.ids.includes(id)) wanted.set(network.ids.indexOf(id), "picked");
    if (lit.ids.size === 1) for (const id of lit.ids) if (network.ids.includes(id)) wanted.set(network.ids.indexOf(id), "now");
    const items = [...wanted].flatMap(([place, kind]) => curveOf(curves, place, state.seed)
      .map((value, at) => ({ epoch: curves.epochs[at], value, place, kind })).filter((one) => one.value !== null));
    const colour = { chosen: "var(--chosen)", picked: "var(--picked)", now: "var(--anomaly)" };
    const ends = [...wanted.keys()].map((place) => items.filter((one) => one.place === place).at(-1)).filter(Boolean);
    draw(plot, `Learning curves: ${outcome.label} by epoch`, {
      height: 340, marginLeft: 56, marginRight: 40, marginBottom: 42,
      x: { label: "epoch of retraining", labelAnchor: "center", ticks: Math.min(band.length, 10), tickFormat: (one) => (Number.isInteger(one) ? String(one) : "") },
      y: { label: outcome.label, grid: true },
      marks: [
        Plot.areaY(band, { x: "epoch", y1: "low", y2: "high", fill: "var(--band)" }),
        Plot.areaY(band, { x: "epoch", y1: "lower", y2: "upper", fill: "var(--band)" }),
        Plot.line(band, { x: "epoch", y: "middle", stroke: "var(--guide)" }),
        ...(band.length === 1 ? [Plot.dot(items, { x: "epoch", y: "value", fill: (one) => colour[one.kind], r: 4 })] : []),
        Plot.line(items, { x: "epoch", y: "value", z: "place", stroke: (one) => colour[one.kind], strokeWidth: 2 }),
        Plot.text(ends, { x: "epoch", y: "value", text: (one) => (one.kind === "chosen" ? `★ ${network.ids[one.place]}` : String(network.ids[one.place])), dx: 6, textAnchor: "start", fill: (one) => colour[one.kind] }),
      ],
      color: { type: "identity" },
    });
  };
  drawLitCurves = () => plot.isConnected && again();
  again();
}
