// What the page's address names: a view, #/gallery, or a picture above one, #/picture/NAME, and perhaps the one beside it.

/** The names of the picture and of the one that it is compared with; none if it is a view. */
export function pictured() {
  const [, ...names] = location.hash.match(/^#\/picture\/([^/]+)(?:\/([^/]+))?$/) ?? [];
  return names.filter(Boolean).map(decodeURIComponent);
}

/** The address of these. */
export const addressOf = (...names) => `#/picture/${names.filter(Boolean).map(encodeURIComponent).join("/")}`;

/** The view that is named; with the slash it is no element's id, so nothing scrolls or takes the focus. */
export const viewed = () => location.hash.replace(/^#\/?/, "");
