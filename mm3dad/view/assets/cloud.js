"use strict";
// Draws one point cloud with WebGL; the data come from the JSON element that mm3dad/view/page3d.py writes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const bytes = (text) => {
    const letters = atob(text), values = new Uint8Array(letters.length);
    for (let i = 0; i < values.length; i++) values[i] = letters.charCodeAt(i);
    return values;
  };
  const shorts = (text) => new Uint16Array(bytes(text).buffer);

  const canvas = find("scene");
  const gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) {
    find("fallback").hidden = false;
    find("controls").hidden = true;
    canvas.hidden = true;
    document.body.dataset.state = "no-webgl";
    return;
  }

  // --- data -------------------------------------------------------------------------------------------------------------
  const count = data.count;
  const position = shorts(data.position);
  const normals = bytes(data.normals);
  const wide = { score: true, group: true };  // kinds of two bytes a point
  const layers = data.layers.map((layer) => ({ ...layer, values: layer.values ? (wide[layer.kind] ? shorts : bytes)(layer.values) : normals }));
  const tables = { score: bytes(data.tables.score), scalar: bytes(data.tables.scalar), group: bytes(data.tables.group) };
  const scores = layers.filter((layer) => layer.kind === "score");
  const truth = layers.find((layer) => layer.kind === "truth");
  const groups = layers.find((layer) => layer.kind === "group");
  // A lamp at the upper left, as in view/surface.py.
  const shade = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const x = normals[3 * i] / 127.5 - 1, y = normals[3 * i + 1] / 127.5 - 1, z = normals[3 * i + 2] / 127.5 - 1;
    const length = Math.sqrt(x * x + y * y + z * z);
    const lit = length < 0.5 ? 0.77 : (-0.45 * x + 0.45 * y + 0.77 * z) / length;
    shade[i] = 0.35 + 0.9 * Math.min(1, 0.12 + 0.78 * Math.max(0, lit));
  }
  const scoreOf = (layer, i) => layer.first + (layer.values[i] / 65535) * (layer.last - layer.first);
  const place = (i) => [0, 1, 2].map((k) => data.origin[k] + data.step[k] * position[3 * i + k]);

  // The kept points are the measured ones of a thinned grid; one bit per grid point says which.
  const pixels = new Uint32Array(count);
  const measured = bytes(data.measured);
  const [rows, columns] = data.grid;
  for (let cell = 0, i = 0; cell < rows * columns && i < count; cell++) if (measured[cell >> 3] & (128 >> (cell & 7))) pixels[i++] = cell;
  const pixelOf = (i) => {
    const [height, width] = data.size;
    const row = Math.floor(pixels[i] / columns), column = pixels[i] % columns;
    return [Math.floor(((row + 0.5) * height) / rows), Math.floor(((column + 0.5) * width) / columns)];
  };

  const rgb = layers.find((layer) => layer.name === "RGB");
  const grey = (i) => (rgb ? 25 + 0.6 * (0.3 * rgb.values[3 * i] + 0.59 * rgb.values[3 * i + 1] + 0.11 * rgb.values[3 * i + 2]) : 120);
  const colors = new Uint8ClampedArray(4 * count);
  const state = { layer: 0, score: scores[0], threshold: data.pixel_threshold, above: false, size: 1, picked: -1, why: undefined };
  function paint() {
    const layer = layers[state.layer], values = layer.values, kind = layer.kind;
    const span = kind === "score" ? Math.max(layer.high - layer.low, 1e-12) : 1;
    const chosen = groups && state.picked >= 0 ? groups.values[state.picked] : -1;
    const beside = new Set(chosen >= 0 && state.why ? state.why.beside : []);
    for (let i = 0; i < count; i++) {
      const to = 4 * i, bright = shade[i];
      let r, g, b;
      if (kind === "color") {
        r = values[3 * i]; g = values[3 * i + 1]; b = values[3 * i + 2];
      } else if (kind === "truth" || (kind === "group" && values[i] === 65535)) {
        if (kind === "truth" && values[i]) { r = 0; g = 200 * bright; b = 255 * bright; } else { r = 128 * bright; g = 130 * bright; b = 138 * bright; }
      } else if (kind === "group") {
        const cell = 3 * (values[i] % (tables.group.length / 3));
        r = tables.group[cell] * bright; g = tables.group[cell + 1] * bright; b = tables.group[cell + 2] * bright;
      } else {
        // as in the pictures: cold points keep the greyed part, hot ones take the colour of their score
        const unit = kind === "score" ? Math.min(1, Math.max(0, (scoreOf(layer, i) - layer.low) / span)) : values[i] / 255;
        const table = tables[kind], cell = 3 * Math.round(255 * unit), cover = kind === "score" ? 0.9 * Math.min(1, 2.2 * unit) : 1;
        const under = cover < 1 ? (1 - cover) * grey(i) : 0;
        r = (cover * table[cell] + under) * bright; g = (cover * table[cell + 1] + under) * bright; b = (cover * table[cell + 2] + under) * bright;
      }
      if (state.above && state.score && scoreOf(state.score, i) > state.threshold) { r = 60 * bright; g = 235 * bright; b = 50 * bright; }
      if (chosen >= 0 && chosen < 65535) {
        if (groups.values[i] === chosen) r = g = b = 255 * bright;
        else if (beside.has(groups.values[i])) { r = (r + 255 * bright) / 2; g = (g + 255 * bright) / 2; b = (b + 255 * bright) / 2; }
      }
      colors[to] = r; colors[to + 1] = g; colors[to + 2] = b; colors[to + 3] = 255;
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, colorBuffer);
    gl.bufferData(gl.ARRAY_BUFFER, colors, gl.DYNAMIC_DRAW);
    redraw();
  }

  // --- drawing ----------------------------------------------------------------------------------------------------------
  const vertex = `
    attribute vec4 place; attribute vec4 color; varying vec4 tint;
    uniform vec3 origin, extent, flip, target; uniform mat3 turn; uniform vec4 lens; uniform float dot, lift;
    void main() {
      vec3 eye = turn * ((origin + extent * place.xyz) * flip - target);
      float away = lens.z - eye.z;
      gl_Position = vec4(eye.x * lens.x, eye.y * lens.y + lift * away, away * (lens.w + 1.0) / (lens.w - 1.0) - 2.0 * lens.w * lens.z * 0.01 / (lens.w - 1.0), away);
      gl_PointSize = clamp(dot / max(away, 1e-9), 1.0, 64.0);
      tint = color;
    }`;
  const fragment = "precision mediump float; varying vec4 tint; void main() { gl_FragColor = tint; }";
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  // Vertices of six bytes straddle the four-byte grid that GPUs like; padding to eight costs memory only.
  const padded = new Uint16Array(4 * count);
  for (let i = 0; i < count; i++) for (let k = 0; k < 3; k++) padded[4 * i + k] = position[3 * i + k];
  const attribute = (name, kind, width, values) => {
    const buffer = gl.createBuffer(), at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, width, kind, true, 0, 0);
    return buffer;
  };
  attribute("place", gl.UNSIGNED_SHORT, 4, padded);
  const colorBuffer = attribute("color", gl.UNSIGNED_BYTE, 4, colors);
  const uniform = (name) => gl.getUniformLocation(program, name);

  const home = { azimuth: -20, elevation: 55, distance: 2.6 * data.radius, target: data.center.map((c, k) => c * data.flip[k]) };
  let camera = { ...home, target: [...home.target] };
  function lens() {
    const turn = (camera.azimuth * Math.PI) / 180, lean = ((90 - camera.elevation) * Math.PI) / 180;
    const [c, s, C, S] = [Math.cos(turn), Math.sin(turn), Math.cos(lean), Math.sin(lean)];
    const lift = canvas.clientWidth <= 560 ? 0.12 : 0;  // the controls cover the lower part of a phone's screen
    const aspect = canvas.width / Math.max(1, canvas.height), focal = 2.2 * Math.min(1, Math.max(aspect, 0.3));
    return { rows: [[c, -s, 0], [C * s, C * c, S], [-S * s, -S * c, C]], x: focal / aspect, y: focal, focal, lift };
  }
  function project(i, view) {
    const at = place(i).map((value, k) => value * data.flip[k] - camera.target[k]);
    const eye = view.rows.map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2]);
    const away = camera.distance - eye[2];
    return [((1 + (eye[0] * view.x) / away) * canvas.clientWidth) / 2, ((1 - view.lift - (eye[1] * view.y) / away) * canvas.clientHeight) / 2, away];
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let waiting = false;
  function redraw() {
    if (!waiting) { waiting = true; requestAnimationFrame(draw); }
  }
  function draw() {
    waiting = false;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    gl.viewport(0, 0, width, height);
    const page = dark.matches ? [20, 21, 26] : [244, 245, 247];
    gl.clearColor(page[0] / 255, page[1] / 255, page[2] / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const view = lens(), r = view.rows;
    gl.uniform3fv(uniform("origin"), data.origin);
    gl.uniform3fv(uniform("extent"), data.step.map((step) => step * 65535));
    gl.uniform3fv(uniform("flip"), data.flip);
    gl.uniform3fv(uniform("target"), camera.target);
    gl.uniformMatrix3fv(uniform("turn"), false, [0, 1, 2].flatMap((k) => [r[0][k], r[1][k], r[2][k]]));
    gl.uniform4f(uniform("lens"), view.x, view.y, camera.distance, 2000);
    gl.uniform1f(uniform("lift"), view.lift);
    gl.uniform1f(uniform("dot"), (2.2 * state.size * data.spacing * view.focal * height) / 2);
    gl.drawArrays(gl.POINTS, 0, count);
    const mark = find("mark");
    mark.hidden = state.picked < 0;
    if (state.picked >= 0) {
      const [x, y] = project(state.picked, view);
      mark.style.left = x + "px";
      mark.style.top = y + "px";
    }
  }

  // --- controls ---------------------------------------------------------------------------------------------------------
  const short = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : Number(value.toPrecision(3)).toString());
  function setLayer(index) {
    if (index < 0 || index >= layers.length) return;
    state.layer = index;
    const layer = layers[index];
    if (layer.kind === "score" && layer !== state.score) { state.score = layer; prepareThreshold(); }
    [...find("layers").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === index)));
    find("bar").hidden = layer.kind !== "score" && layer.kind !== "scalar";
    if (!find("bar").hidden) {
      find("low").textContent = layer.kind === "score" ? short(layer.low) : layer.ends[0];
      find("high").textContent = layer.kind === "score" ? short(layer.high) : layer.ends[1];
      const strip = find("strip"), pen = strip.getContext("2d"), row = pen.createImageData(256, 1), table = tables[layer.kind];
      for (let k = 0; k < 256; k++) row.data.set([table[3 * k], table[3 * k + 1], table[3 * k + 2], 255], 4 * k);
      pen.putImageData(row, 0, 0);
    }
    paint();
  }
  function prepareThreshold() {
    const slider = find("threshold");
    slider.min = state.score.first;
    slider.max = Math.max(state.score.last, state.score.high);
    slider.step = (slider.max - slider.min) / 1000 || 1;
    setThreshold(state.score === scores[0] && data.pixel_threshold !== null ? data.pixel_threshold : state.score.suggested, false);
  }
  function setThreshold(value, above = true) {
    state.threshold = value;
    find("threshold").value = value;
    if (above) { state.above = true; find("above").checked = true; }
    let over = 0;
    for (let i = 0; i < count; i++) if (scoreOf(state.score, i) > value) over++;
    find("cut").textContent = short(value);
    find("share").textContent = `${short((100 * over) / count)} % of the points`;
  }
  function pick(x, y) {
    // project() written out for all points at once: calling it per point takes half a second
    const view = lens(), [r0, r1, r2] = view.rows, half = [canvas.clientWidth / 2, canvas.clientHeight / 2];
    const first = data.origin.map((value, k) => value * data.flip[k] - camera.target[k]);
    const step = data.step.map((value, k) => value * data.flip[k]);
    let best = -1, rank = Infinity;
    for (let i = 0; i < count; i++) {
      const a = first[0] + step[0] * position[3 * i], b = first[1] + step[1] * position[3 * i + 1], c = first[2] + step[2] * position[3 * i + 2];
      const away = camera.distance - (r2[0] * a + r2[1] * b + r2[2] * c);
      if (away <= 0) continue;
      const dx = half[0] * (1 + ((r0[0] * a + r0[1] * b + r0[2] * c) * view.x) / away) - x;
      const dy = half[1] * (1 - view.lift - ((r1[0] * a + r1[1] * b + r1[2] * c) * view.y) / away) - y;
      const gap = Math.sqrt(dx * dx + dy * dy);
      if (gap > 24) continue;
      const value = gap <= 5 ? away / camera.distance - 1e6 : gap;  // under the cursor the nearest to the eye, else the nearest on the screen
      if (value < rank) { rank = value; best = i; }
    }
    choose(best);
    return best;
  }
  function choose(i) {
    state.picked = i;
    find("info").hidden = i < 0;
    if (i >= 0) { describe(i); explain(i); }
    if (groups) paint(); else redraw();
  }
  // The explanation of a place holds for its whole group, and for a few pixels around it where there are no groups.
  const holds = (one, i) => {
    if (groups && one.group !== null) return groups.values[i] === one.group;
    const [row, column] = pixelOf(i);
    return Math.abs(row - one.pixel[0]) <= one.reach && Math.abs(column - one.pixel[1]) <= one.reach;
  };
  const make = (kind, text, parts = []) => {
    const element = document.createElement(kind);
    element.textContent = text;
    element.append(...parts);
    return element;
  };
  const lines = (facts) => facts.map(([name, value]) => make("tr", "", [make("th", name), make("td", value)]));
  function explain(i) {
    const one = data.explained.find((candidate) => holds(candidate, i)), box = find("why");
    box.hidden = !one;
    state.why = one;
    if (!one) return;
    const figures = one.tiles.map((tile) => {
      const pictures = tile.pictures.map((text) => {
        const picture = document.createElement("img");
        picture.src = "data:image/jpeg;base64," + text;
        picture.alt = tile.caption;
        return picture;
      });
      return make("figure", "", [...pictures, make("figcaption", "", [make("b", tile.caption), make("span", tile.note)])]);
    });
    box.replaceChildren(make("table", "", [make("tbody", "", lines(one.facts))]), ...figures);
  }
  function visit(one) {
    let best = -1, gap = Infinity;
    for (let i = 0; i < count; i++) {
      const [row, column] = pixelOf(i), away = Math.hypot(row - one.pixel[0], column - one.pixel[1]) + (holds(one, i) ? 0 : 1e6);
      if (away < gap) { gap = away; best = i; }
    }
    choose(best);
  }
  function describe(i) {
    const [row, column] = pixelOf(i), table = find("facts");
    const facts = data.size[0] > 1 ? [["pixel", `row ${row}, column ${column}`]] : [["point", String(column)]];
    facts.push(["x, y, z in mm", place(i).map((value) => (1000 * value).toFixed(2)).join(", ")]);
    scores.forEach((layer) => facts.push([layer.name, short(scoreOf(layer, i))]));
    if (data.threshold !== null && scores.length) facts.push(["threshold", short(data.threshold)]);
    if (truth) facts.push(["ground truth", truth.values[i] ? "defect" : "good"]);
    if (groups && groups.values[i] < 65535) facts.push(["group", String(groups.values[i])]);
    table.replaceChildren(...lines(facts));
  }

  layers.forEach((layer, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = layer.name;
    button.title = `key ${index + 1}`;
    button.addEventListener("click", () => setLayer(index));
    find("layers").append(button);
  });
  find("places").hidden = data.explained.length === 0;
  data.explained.forEach((one, index) => {
    const button = make("button", String(index + 1));
    button.type = "button";
    button.title = `explained place ${index + 1}: row ${one.pixel[0]}, column ${one.pixel[1]}`;
    button.addEventListener("click", () => visit(one));
    find("places").append(button);
  });
  find("size").addEventListener("input", (event) => { state.size = Number(event.target.value); find("dots").textContent = short(state.size); redraw(); });
  find("scored").hidden = scores.length === 0;
  find("threshold").addEventListener("input", (event) => { setThreshold(Number(event.target.value)); paint(); });
  find("above").addEventListener("change", (event) => { state.above = event.target.checked; paint(); });
  const reset = () => { camera = { ...home, target: [...home.target] }; redraw(); };
  find("reset").addEventListener("click", reset);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    const steps = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] }[event.key];
    if (steps) orbit(...steps);
    else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 0.9 : 1.1);
    else if (event.key === "r") reset();
    else if (/^[1-9]$/.test(event.key)) setLayer(Number(event.key) - 1);
    else return;
    event.preventDefault();
  });

  function orbit(right, up) {
    camera.azimuth += right;
    camera.elevation = Math.max(-90, Math.min(90, camera.elevation + up));
    redraw();
  }
  function zoom(factor) {
    camera.distance = Math.max(0.1 * data.radius, Math.min(20 * data.radius, camera.distance * factor));
    redraw();
  }
  function pan(dx, dy) {
    const view = lens(), unit = (2 * camera.distance) / (view.focal * canvas.clientHeight);
    for (let k = 0; k < 3; k++) camera.target[k] += unit * (-dx * view.rows[0][k] + dy * view.rows[1][k]);
    redraw();
  }
  const fingers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (fingers.size === 0) moved = 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY], [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    moved += Math.abs(dx) + Math.abs(dy);
    if (fingers.size >= 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const [was, is] = [before, now].map((point) => Math.hypot(point[0] - other[0], point[1] - other[1]));
      if (is > 1) zoom(was / is);
      pan(dx / 2, dy / 2);
    } else if (event.shiftKey || event.buttons & 6) pan(dx, dy);
    else orbit(0.4 * dx, 0.4 * dy);
    fingers.set(event.pointerId, now);
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => {
    fingers.delete(event.pointerId);
    if (kind === "pointerup" && fingers.size === 0 && moved < 5 && event.button === 0) pick(event.clientX, event.clientY);
  });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(0.0012 * event.deltaY)); }, { passive: false });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); find("fallback").hidden = false; });
  window.addEventListener("resize", redraw);
  dark.addEventListener("change", redraw);

  if (scores.length) prepareThreshold();
  // page.html#layer=groups&why=1 opens with this layer, at this explained place
  const wanted = new URLSearchParams(window.location.hash.slice(1)), named = layers.findIndex((layer) => layer.name === wanted.get("layer"));
  setLayer(named >= 0 ? named : data.first);
  const linked = data.explained[Number(wanted.get("why")) - 1];
  if (linked) visit(linked);
  document.body.dataset.state = "ready";
  window.mm3dad = { data, state, layers, setLayer, setThreshold, pick, choose, pixelOf, project: (i) => project(i, lens()), orbit, zoom };
})();
