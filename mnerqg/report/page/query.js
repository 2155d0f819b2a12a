"use strict";
// The filter as a DuckDB query: what the page asks of its sample, the query asks of all posts.

function sqlText(value) {
  return `'${value.replaceAll("'", "''").replaceAll("\u0000", "")}'`;
}

/** The query of a filter, as `readFilter` gives it. What gold says is not in the tags and so is left out. */
function duckdbQuery(filter) {
  const { source } = DATA;
  const lines = [`SELECT t.*`, `FROM read_parquet(${sqlText(source.tags)}, union_by_name = true) AS t`];
  const conditions = [
    ...entityConditions(filter),
    ...pictureConditions(filter, source),
    ...(filter.text ? [`t.text_status = ${sqlText(filter.text)}`] : []),
    ...errorConditions(filter),
    ...(filter.search ? [searchCondition(filter.search, source)] : []),
  ];
  conditions.forEach((condition, place) => lines.push(`${place ? "  AND" : "WHERE"} ${condition}`));
  const left = filter.gold.size ? "-- the filter against gold is left out: annotations are not in the tags\n" : "";
  return `${left}${lines.join("\n")};`;
}

function entityConditions({ types, from, to }) {
  const parts = [];
  if (types.size) parts.push(`list_contains([${[...types].map(sqlText).join(", ")}], e.type)`);
  // As many digits as the page has, so that both mean the same entities.
  if (from > 0) parts.push(`round(e.score::DOUBLE, 4) >= ${from}`);
  if (to < 1) parts.push(`round(e.score::DOUBLE, 4) <= ${to}`);
  return parts.length ? [`len(list_filter(t.entities, lambda e: ${parts.join(" AND ")})) > 0`] : [];
}

function pictureConditions({ picture }, source) {
  if (!picture) return [];
  if (!source.images) return [`t.image_status = ${sqlText(picture)}`];
  if (picture === "none") return ["len(t.images) = 0"];
  return [`len(list_filter(t.images, lambda i: i.status = ${sqlText(picture)})) > 0`];
}

function errorConditions({ error }) {
  if (error === "no") return ["t.error IS NULL"];
  if (error === "any") return ["t.error IS NOT NULL"];
  if (!error) return [];
  const pattern = sqlText(reasonPattern(error.slice("reason:".length)));
  return [`len(list_filter(string_split(t.error, '; '), lambda r: regexp_matches(r, ${pattern}))) > 0`];
}

const REASON_LENGTH = 200; // a longer one is cut
const NUMBER = "(N|0x[0-9a-fA-F]+|[0-9][0-9,.]*([x×][0-9][0-9,.]*)?)";

/** The errors of a reason, in which N stands for numbers that differ from row to row, as a regular expression. */
function reasonPattern(reason) {
  const escaped = reason.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const numbers = escaped.replace(/(?<![A-Za-z])N(?=(?:%|ms|s|[kKMG]i?B|B)?(?![A-Za-z]))/g, NUMBER);
  return `^(picture [0-9]+: )?${numbers}${reason.length < REASON_LENGTH ? "$" : ""}`;
}

function searchCondition(search, source) {
  const contains = (column) => `contains(lower(${column}), lower(${sqlText(search)}))`;
  if (source.text) return contains("t.text");
  if (source.archive === null) return contains("to_json(t.entities)::VARCHAR");
  const column = (name) => `"${name.replaceAll('"', '""')}"`;
  const read = `${source.archive.json ? "read_json_auto" : "read_parquet"}([${source.archive.uris.map(sqlText).join(", ")}])`;
  return `t.post_id IN (SELECT ${column(source.archive.id)}::VARCHAR FROM ${read} WHERE ${contains(column(source.archive.text))})`;
}
