// A form made from a JSON schema. What a form cannot hold (unions, maps, recursion) is a box of raw JSON in its place.

/** Makes an element. Children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Something that a field cannot hold, or does not have yet. */
class FieldError extends Error {}

let fieldCount = 0;

/** What a schema comes down to: references followed, `null` taken out of it, and why a form cannot hold it. */
function normalise(schema, root, followed = []) {
  if (schema === true || typeof schema !== "object" || schema === null) return { followed };
  const { $ref: reference, allOf, anyOf, oneOf, ...rest } = schema;
  if (reference !== undefined) {
    if (followed.includes(reference)) return { ...rest, followed };
    const steps = reference.replace(/^#\/?/, "").split("/").map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
    const target = reference.startsWith("#/") ? steps.reduce((inner, step) => inner?.[step], root) : undefined;
    return normalise({ ...(target ?? {}), ...rest }, root, [...followed, reference]);
  }
  if (allOf?.length === 1) return normalise({ ...allOf[0], ...rest }, root, followed);
  const choices = anyOf ?? oneOf;
  if (choices !== undefined) {
    const others = choices.filter((choice) => choice.type !== "null");
    const nullable = others.length < choices.length;
    return others.length === 1 ? { ...normalise({ ...others[0], ...rest }, root, followed), nullable } : { ...rest, nullable, followed };
  }
  if (Array.isArray(rest.type)) {
    const types = rest.type.filter((type) => type !== "null");
    const nullable = types.length < rest.type.length;
    return { ...rest, nullable, followed, type: types.length === 1 ? types[0] : undefined };
  }
  return { ...rest, followed };
}

/** The limits of a value, for people. */
function hintOf(schema) {
  const { minimum, maximum, exclusiveMinimum: over, exclusiveMaximum: under, minLength, maxLength, minItems, maxItems, pattern } = schema;
  const hints = [];
  if (schema.format) hints.push(schema.format);
  if (minimum !== undefined) hints.push(`at least ${minimum}`);
  if (over !== undefined) hints.push(`more than ${over}`);
  if (maximum !== undefined) hints.push(`at most ${maximum}`);
  if (under !== undefined) hints.push(`less than ${under}`);
  if (minLength !== undefined) hints.push(`${minLength} or more characters`);
  if (maxLength !== undefined) hints.push(`up to ${maxLength} characters`);
  if (minItems) hints.push(`${minItems} or more items`);
  if (maxItems !== undefined) hints.push(`up to ${maxItems} items`);
  if (pattern) hints.push(`like ${pattern}`);
  return hints.join(", ");
}

/**
 * Makes the field of a schema: `{element, control, read, write}`. `read` gives its value; `write` shows one. Both throw a
 * FieldError where that cannot be. `control` is what a label is for, where there is just one.
 */
function makeField(given, root, followed = []) {
  const schema = normalise(given, root, followed);
  if ("const" in schema) return choiceField([schema.const]);
  if (Array.isArray(schema.enum)) return choiceField(schema.enum, schema.default);
  if (schema.type === "string") return stringField(schema);
  if (schema.type === "integer" || schema.type === "number") return numberField(schema);
  if (schema.type === "boolean") return booleanField(schema);
  if (schema.type === "array" && schema.items && !schema.prefixItems) return listField(schema, root);
  if (schema.type === "object" && Object.keys(schema.properties ?? {}).length > 0) return objectField(schema, root);
  return jsonField(schema);
}

function choiceField(choices, preset = choices[0]) {
  const texts = choices.map((choice) => JSON.stringify(choice));
  const options = choices.map((choice, index) => el("option", { value: index }, typeof choice === "string" ? choice : texts[index]));
  const element = el("select", {}, ...options);
  const write = (value) => {
    const index = texts.indexOf(JSON.stringify(value));
    if (index < 0) throw new FieldError(`is none of ${texts.join(", ")}`);
    element.selectedIndex = index;
  };
  write(texts.includes(JSON.stringify(preset)) ? preset : choices[0]);
  return { element, control: element, read: () => choices[element.selectedIndex], write };
}

function stringField(schema) {
  const short = schema.maxLength <= 60 || schema.format !== undefined;
  const attributes = { placeholder: schema.examples?.[0], autocomplete: "off" };
  const element = short ? el("input", attributes) : el("textarea", { rows: 2, ...attributes });
  const write = (value) => {
    if (typeof value !== "string") throw new FieldError("is no string");
    element.value = value;
  };
  write(schema.default ?? "");
  return { element, control: element, read: () => element.value, write };
}

function numberField(schema) {
  const element = el("input", { inputmode: "decimal", autocomplete: "off", class: "number", placeholder: schema.examples?.[0] });
  const write = (value) => {
    if (typeof value !== "number") throw new FieldError("is no number");
    element.value = String(value);
  };
  const read = () => {
    const value = Number(element.value);
    if (element.value.trim() === "" || Number.isNaN(value)) throw new FieldError("needs a number");
    if (!keepsNumbers(String(element.value).trim())) throw new FieldError("is too large a number for a form: use JSON");
    return value;
  };
  if (typeof schema.default === "number") write(schema.default);
  return { element, control: element, read, write };
}

function booleanField(schema) {
  const control = el("input", { type: "checkbox", role: "switch" });
  const write = (value) => {
    if (typeof value !== "boolean") throw new FieldError("is neither true nor false");
    control.checked = value;
  };
  write(schema.default === true);
  return { element: control, control, read: () => control.checked, write };
}

function jsonField(schema) {
  const control = el("textarea", { rows: 3, class: "code", spellcheck: "false", placeholder: "JSON" });
  const write = (value) => void (control.value = JSON.stringify(value, null, 2));
  const read = () => {
    const error = findJsonError(control.value);
    if (error) throw new FieldError(`is no JSON: line ${error.line}, column ${error.column}: expected ${error.expected}`);
    return JSON.parse(control.value);
  };
  const preset = schema.default ?? schema.examples?.[0] ?? { object: {}, array: [] }[schema.type];
  if (preset !== undefined) write(preset);
  return { element: control, control, read, write, isJson: true };
}

function listField(schema, root) {
  let items = [];
  const list = el("ol", { class: "items" });
  const add = (value) => {
    const field = makeField(schema.items, root, schema.followed);
    const item = { field };
    const remove = el("button", { type: "button", class: "icon", "aria-label": "Remove this item", click: () => {
      items = items.filter((other) => other !== item);
      item.row.remove();
      button.focus();
    } }, "×");
    item.row = el("li", {}, field.element, remove);
    field.control?.setAttribute("aria-label", "Item");
    if (value !== undefined) field.write(value);
    items.push(item);
    list.append(item.row);
    return field;
  };
  const button = el("button", { type: "button", class: "small", click: () => add().control?.focus() }, "Add an item");
  const write = (values) => {
    if (!Array.isArray(values)) throw new FieldError("is no array");
    items = [];
    list.replaceChildren();
    values.forEach((value, index) => within(`[${index}]`, () => add(value)));
  };
  write(schema.default ?? []);
  const read = () => items.map((item, index) => within(`[${index}]`, item.field.read));
  const find = (path) => descend(path, /^\[(\d+)\]/, (index) => items[index]);
  return { element: el("div", { class: "items-box" }, list, button), read, write, find };
}

function objectField(schema, root) {
  const required = new Set(schema.required ?? []);
  const members = new Map();
  for (const [name, given] of Object.entries(schema.properties)) {
    const inner = normalise(given, root, schema.followed);
    const isOptional = (!required.has(name) && (inner.default ?? null) === null) || inner.nullable === true;
    members.set(name, makeMember(name, inner, makeField(given, root, schema.followed), required.has(name), isOptional));
  }
  const write = (value) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw new FieldError("is no object");
    for (const name of Object.keys(value)) if (!members.has(name)) throw new FieldError(`has \`${name}\`, which is no field of the form`);
    for (const [name, member] of members) within(`.${name}`, () => member.write(Object.hasOwn(value, name) ? value[name] : undefined));
  };
  const read = () => {
    const entries = [...members].map(([name, member]) => [name, within(`.${name}`, member.read)]);
    return Object.fromEntries(entries.filter(([, value]) => value !== undefined));
  };
  const find = (path) => descend(path, /^\.([^.[]+)/, (name) => members.get(name));
  if (schema.default) write(schema.default);
  return { element: el("div", { class: "fields" }, ...[...members.values()].map((member) => member.row)), read, write, find };
}

/** A field with its name, its description, and a switch where it may be left out. */
function makeMember(name, schema, field, isRequired, isOptional) {
  const id = `field-${(fieldCount += 1)}`;
  const hint = [isRequired ? "required" : "", schema.type ?? (field.isJson ? "JSON" : ""), hintOf(schema)].filter(Boolean).join(" · ");
  const label = field.control ? el("label", { for: id, class: "name" }, name) : el("span", { id, class: "name" }, name);
  const error = el("p", { id: `${id}-error`, class: "note bad", role: "alert" });
  const note = schema.description ? el("p", { id: `${id}-note`, class: "note" }, schema.description) : null;
  const described = [note?.id, error.id].filter(Boolean).join(" ");
  if (field.control) Object.entries({ id, "aria-describedby": described }).forEach((pair) => field.control.setAttribute(...pair));
  else Object.entries({ role: "group", "aria-labelledby": id }).forEach((pair) => field.element.setAttribute(...pair));
  const toggle = isOptional ? el("input", { type: "checkbox", role: "switch", "aria-label": `Send ${name}`, change: () => show(toggle.checked) }) : null;
  const show = (on) => {
    if (toggle) toggle.checked = on;
    field.element.hidden = !on;
  };
  const head = el("div", { class: "row spread" }, el("span", {}, label, el("span", { class: "hint" }, hint)), toggle);
  const row = el("div", { class: `field${field.control?.type === "checkbox" ? " check" : ""}` }, head, note, field.element, error);
  const preset = schema.default;
  if (toggle) show(false);
  return {
    row,
    field,
    error,
    read: () => (toggle && !toggle.checked ? (isRequired ? null : undefined) : field.read()),
    write(value) {
      if (value === undefined && isRequired) throw new FieldError("is not there");
      if (toggle) show(value !== undefined && value !== null);
      if (value !== undefined && !(value === null && schema.nullable)) field.write(value);
      else if (value === undefined && preset !== undefined && preset !== null) field.write(preset);
    },
  };
}

/** Calls a function, and puts a step in front of the path of a FieldError that it throws. */
function within(step, call) {
  try {
    return call();
  } catch (error) {
    if (error instanceof FieldError) error.path = step + (error.path ?? "");
    throw error;
  }
}

/** Follows one step of a path like `.tags[0]`: the member there, or what it finds further down. */
function descend(path, pattern, memberOf) {
  const match = pattern.exec(path);
  const member = match ? memberOf(match[1]) : undefined;
  return member?.field.find?.(path.slice(match[0].length)) ?? (member?.error ? member : undefined);
}
