// JSON as text: what is wrong with it, and its tokens. Numbers stay as they are written, whatever JavaScript makes of them.

const TOKEN = /([{}[\],:])|("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.])/y;
const SPACE = /[ \t\n\r]*/y;

/** Where a text stops being JSON, as `{offset, line, column, expected}`; null where it is JSON. */
function findJsonError(text) {
  const open = [];
  const next = () => (open.length === 0 ? "end" : open.at(-1) === "{" ? "`,` or `}`" : "`,` or `]`");
  let expected = "a value", at = 0;
  for (;;) {
    SPACE.lastIndex = at;
    SPACE.exec(text);
    TOKEN.lastIndex = at = SPACE.lastIndex;
    if (at === text.length && expected === "end") return null;
    const [token, mark, string, scalar] = TOKEN.exec(text) ?? [];
    const takesValue = expected.startsWith("a value");
    if (takesValue && (string || scalar)) expected = next();
    else if (takesValue && mark === "{") open.push("{"), (expected = "a name in quotes or `}`");
    else if (takesValue && mark === "[") open.push("["), (expected = "a value or `]`");
    else if (string && expected.startsWith("a name")) expected = "`:`";
    else if (mark === ":" && expected === "`:`") expected = "a value";
    else if (mark === "," && expected.startsWith("`,`")) expected = open.at(-1) === "{" ? "a name in quotes" : "a value";
    else if ((mark === "}" || mark === "]") && expected.includes(`\`${mark}\``)) open.pop(), (expected = next());
    else {
      const before = text.slice(0, at).split("\n");
      const what = expected === "end" ? "nothing more" : expected;
      return { offset: at, line: before.length, column: before.at(-1).length + 1, expected: what };
    }
    at += token.length;
  }
}

/** The tokens of JSON, each `[kind, text]`, with the spaces that make it easy to read. */
function* prettyTokens(json) {
  const tokens = [...json.matchAll(new RegExp(TOKEN.source, "g"))];
  let depth = 0;
  const line = () => ["", `\n${"  ".repeat(depth)}`];
  for (const [index, [text, mark, string]] of tokens.entries()) {
    const [following, before] = [tokens[index + 1]?.[0], tokens[index - 1]?.[0]];
    if (mark === "}" || mark === "]") {
      depth -= 1;
      if (before !== "{" && before !== "[") yield line();
    }
    yield [mark ? "mark" : string ? (following === ":" ? "name" : "string") : "scalar", text];
    if (mark === "{" || mark === "[") {
      depth += 1;
      if (following !== "}" && following !== "]") yield line();
    } else if (mark === ",") yield line();
    else if (mark === ":") yield ["", " "];
  }
}

/** Whether JavaScript's numbers hold those of a JSON text as they are written. */
function keepsNumbers(json) {
  const numbers = [...json.matchAll(new RegExp(TOKEN.source, "g"))].map((match) => match[3]).filter((text) => /\d/.test(text));
  return numbers.every((text) => Number.isFinite(Number(text)) && (/[.eE]/.test(text) || Number.isSafeInteger(Number(text))));
}
