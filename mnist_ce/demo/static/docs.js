// The interface for programs, as /openapi.json describes it.

import { element } from "./draw.js";

// A description's `code` as elements, its other text as it is.
const described = (text) => text.split("`").map((part, place) => (place % 2 ? element("code", {}, part) : part));

const { paths } = await (await fetch("../openapi.json")).json();
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const { summary, description = summary, parameters = [], requestBody, responses } = operation;
    const rows = parameters.filter((one) => one.in === "query").map(({ name, description: meaning = "", schema }) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, ...described(meaning)),
        element("td", {}, schema.default === undefined ? "" : JSON.stringify(schema.default))));
    const table = element("table", {}, element("thead", {}, element("tr", {},
      ...["option", "meaning", "default"].map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows));
    const needed = parameters.filter((one) => one.required).map(({ name }) => `?${name}=7`).join("");
    const body = requestBody ? " --data-binary @seven.png" : "";
    const example = `curl${method === "post" ? " -X POST" : ""}${body} '${location.origin}${path}${needed}'`;
    const answer = JSON.stringify(responses[200]?.content?.["application/json"]?.example, null, 2);
    document.querySelector("#paths").append(element("section", { className: "card" },
      element("h2", {}, element("span", { className: "method" }, method.toUpperCase()), path),
      element("p", {}, ...described(description)), ...(rows.length ? [table] : []),
      element("p", { className: "note" }, `Answers: ${Object.keys(responses).join(", ")}`),
      element("pre", { tabIndex: 0 }, example), ...(answer ? [element("pre", { tabIndex: 0 }, answer)] : [])));
  }
}
