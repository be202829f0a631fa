"use strict";
// Shows /openapi.json and lets one try it. Texts of the document and of answers
// reach the page as text only, never as HTML.

const $ = (id) => document.getElementById(id);

/** h makes an element: h("p", {class: "soft"}, "text", child). */
function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== false && child !== ""));
  return element;
}

let api; // the document

/** resolved follows a $ref. */
function resolved(thing) {
  while (thing && thing.$ref) thing = thing.$ref.slice(2).split("/").reduce((at, part) => at[part.replace(/~1/g, "/")], api);
  return thing;
}

/** inline renders `code` within a text. */
const inline = (text) => text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));

/** prose renders paragraphs and tables, all that the document uses of Markdown. */
function prose(text) {
  const box = h("div", { class: "prose" });
  for (const block of (text || "").trim().split(/\n\s*\n/)) {
    if (!block.startsWith("|")) {
      box.append(h("p", {}, inline(block.replace(/\n/g, " "))));
      continue;
    }
    const [head, , ...rows] = block.split("\n").map((line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
    const row = (cells, kind) => h("tr", {}, cells.map((cell) => h(kind, {}, inline(cell))));
    box.append(h("div", { class: "scroll" }, h("table", {}, row(head, "th"), rows.map((cells) => row(cells, "td")))));
  }
  return box;
}

/** typeOf says in a few words what a schema takes. */
function typeOf(schema) {
  schema = resolved(schema) || {};
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const types = [].concat(schema.type || "any JSON").filter((type) => type !== "null");
  if (types[0] === "array") return "array of " + (typeOf(schema.items) === "object" ? "objects" : typeOf(schema.items));
  return types.join(" or ") + (schema.format ? ", " + schema.format : "");
}

/** objectOf finds the object that a schema is about. */
function objectOf(schema) {
  schema = resolved(schema) || {};
  if (schema.properties) return schema;
  if (schema.items) return objectOf(schema.items);
  for (const one of schema.oneOf || []) {
    const found = objectOf(one);
    if (found) return found;
  }
  return undefined;
}

function field(name, schema, required, description) {
  return h("li", {}, h("span", { class: "mono" }, name), h("i", {}, typeOf(schema)), required && h("em", {}, "required"),
    description && h("p", {}, inline(description)));
}

function fieldsOf(schema) {
  const object = objectOf(schema);
  if (!object) return undefined;
  const required = object.required || [];
  return h("ul", { class: "fields" }, Object.entries(object.properties).map(([name, part]) =>
    field(name, part, required.includes(name), resolved(part).description)));
}

/** coloured renders JSON text; anything else stays as it is. */
function coloured(text) {
  let pretty;
  try { pretty = JSON.stringify(JSON.parse(text), null, 2); } catch { return [text]; }
  if (pretty.length > 200000) return [pretty]; // so many elements would take long
  return pretty.split(/("(?:\\.|[^"\\])*"(?:\s*:)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)/).map((part, i) => {
    if (i % 2 === 0) return part;
    const kind = part.endsWith(":") ? "k" : part[0] === '"' ? "s" : /^[tfn]/.test(part) ? "w" : "n";
    return h("span", { class: kind }, part);
  });
}

const exampleText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

/** examplesOf lists what a body may look like: {title, type, text}. */
function examplesOf(body) {
  return Object.entries(body.content).flatMap(([type, content]) => {
    const list = content.examples ? Object.values(content.examples) : [{ summary: "Example", value: content.example }];
    return list.map((example) => ({ title: example.summary + " · " + type, type, text: exampleText(example.value) }));
  });
}

const shellQuoted = (text) => "'" + text.replace(/'/g, "'\\''") + "'";

/** Trial is the form that sends one operation. */
function trial(method, path, operation) {
  const parameters = (operation.parameters || []).map(resolved);
  const inputs = parameters.map((p) => h("input", { placeholder: p.example || "", spellcheck: "false", autocomplete: "off", "aria-label": p.name }));
  const examples = operation.requestBody ? examplesOf(resolved(operation.requestBody)) : [];
  const body = h("textarea", { spellcheck: "false", "aria-label": "Body" });
  const choice = h("select", { "aria-label": "Example", onchange: fill }, examples.map((e, i) => h("option", { value: i }, e.title)));
  const curl = h("pre", { class: "curl" }), answer = h("div", { "aria-live": "polite" });
  const send = h("button", { type: "submit" }, "Send");

  function fill() {
    const example = examples[choice.value];
    if (!example) return;
    body.value = example.text.trimEnd();
    body.rows = Math.min(16, body.value.split("\n").length + 1);
    show();
  }

  function request() {
    const headers = {}, key = $("key").value.trim();
    let url = path;
    parameters.forEach((p, i) => {
      const value = inputs[i].value.trim();
      if (p.in === "path") url = url.replace("{" + p.name + "}", encodeURIComponent(value || p.example || ""));
      else if (p.in === "header" && value) headers[p.name] = value;
    });
    if (key && !(operation.security && operation.security.length === 0)) headers.Authorization = "Bearer " + key;
    if (examples.length) headers["Content-Type"] = examples[choice.value].type;
    return { url, init: { method, headers, body: examples.length ? body.value : undefined, credentials: "omit" } };
  }

  function show() {
    const { url, init } = request();
    const lines = ["curl -i " + shellQuoted(location.origin + url)];
    for (const [name, value] of Object.entries(init.headers)) {
      lines.push("-H " + shellQuoted(name + ": " + (name === "Authorization" ? "Bearer $KEY" : value)).replace("'Authorization: Bearer $KEY'", '"Authorization: Bearer $KEY"'));
    }
    if (init.body !== undefined) lines.push("--data-binary " + shellQuoted(init.body));
    curl.replaceChildren(lines.join(" \\\n  "));
  }

  async function run(event) {
    event.preventDefault();
    send.disabled = true;
    const { url, init } = request(), start = performance.now();
    try {
      const response = await fetch(url, init), text = await response.text();
      const took = Math.round(performance.now() - start);
      const headers = [...response.headers].filter(([name]) => /^(location|retry-after|x-request-id|idempotency-replayed|www-authenticate|content-type)$/.test(name));
      answer.replaceChildren(
        h("div", { class: "row" }, h("span", { class: "code c" + Math.floor(response.status / 100) }, response.status + " " + response.statusText), h("span", { class: "took" }, took + " ms")),
        h("pre", {}, headers.map(([name, value]) => name + ": " + value + "\n"), headers.length ? "\n" : "", coloured(text)));
    } catch (error) {
      answer.replaceChildren(h("p", { class: "notice" }, "No answer: " + error.message));
    }
    send.disabled = false;
  }

  const form = h("form", { class: "try", onsubmit: run, oninput: show },
    parameters.map((p, i) => h("label", { class: "field" }, h("span", {}, p.name + (p.in === "path" ? "" : " (header)")), inputs[i])),
    examples.length > 0 && h("div", { class: "row" }, h("h3", {}, "Body"), choice),
    examples.length > 0 && body,
    h("div", { class: "row" }, send),
    answer, h("h3", {}, "In a terminal"), curl);
  $("key").addEventListener("input", show);
  fill();
  show();
  return form;
}

function operationOf(path, method, operation, open) {
  const id = operation.operationId;
  const body = operation.requestBody && resolved(operation.requestBody);
  const parameters = (operation.parameters || []).map(resolved);
  const schema = body && Object.values(body.content)[0].schema;
  const success = Object.entries(operation.responses).find(([status]) => status[0] === "2");
  const answerFields = success && fieldsOf(Object.values(resolved(success[1]).content)[0].schema);
  const tell = h("div", { class: "tell" },
    operation.description && prose(operation.description),
    parameters.length > 0 && h("h3", {}, "Parameters"),
    parameters.length > 0 && h("ul", { class: "fields" }, parameters.map((p) => field(p.name, p.schema, p.required, p.description))),
    schema && h("h3", {}, "Fields of the body"), schema && fieldsOf(schema),
    answerFields && h("h3", {}, "Fields of the answer"), answerFields,
    h("h3", {}, "Answers"),
    h("ul", { class: "answers" }, Object.entries(operation.responses).map(([status, response]) =>
      h("li", {}, h("span", { class: "code c" + status[0] }, status), h("span", {}, inline(resolved(response).description.trim()))))));
  return h("details", { class: "op", id, open },
    h("summary", {}, h("span", { class: "verb " + method }, method.toUpperCase()), h("span", { class: "path" }, path), h("span", { class: "what" }, operation.summary)),
    h("div", { class: "columns" }, tell, trial(method.toUpperCase(), path, operation)));
}

function render() {
  $("title").textContent = api.info.title;
  $("version").textContent = "version " + api.info.version;
  $("summary").textContent = api.info.summary;
  $("about").replaceWith(prose(api.info.description));
  for (const tag of api.tags) {
    $("nav").append(h("h2", {}, tag.name));
    $("operations").append(h("h2", { class: "group" }, tag.name));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (!operation.tags.includes(tag.name)) continue;
        const part = operationOf(path, method, operation, tag.name !== "Operation");
        const link = h("a", { href: "#" + part.id, onclick: () => { part.open = true; } },
          h("span", { class: "verb " + method }, method.toUpperCase()), operation.summary);
        $("nav").append(link);
        $("operations").append(part);
        watch.observe(part.firstChild);
        links.set(part.firstChild, link);
      }
    }
  }
  const target = location.hash && $(location.hash.slice(1));
  if (target) { target.open = true; target.scrollIntoView(); }
}

// The operation at the top of the window is marked in the list.
const links = new Map();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.classList.remove("here");
    links.get(entry.target).classList.add("here");
  }
}, { rootMargin: "-60px 0px -70% 0px" });

fetch("/openapi.json")
  .then((response) => response.json())
  .then((document) => { api = document; render(); })
  .catch((error) => { $("summary").replaceWith(h("p", { class: "notice" }, "The description cannot be shown: " + error.message)); });
