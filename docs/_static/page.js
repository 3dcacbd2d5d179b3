/* What the theme leaves undone: search from disk, and parts that keyboards and screen readers should reach. */
"use strict";
// From disk, a page must not read another, so the search lists titles without a line from each page.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll(".bd-sidebar-primary li > details > summary")) {
    const link = summary.closest("li").querySelector("a");
    summary.setAttribute("aria-label", `Pages below ${link.textContent.trim()}`);
  }
  // Docutils gives an entry of a bibliography a role that a list must not hold any more.
  for (const entry of document.querySelectorAll("[role=doc-biblioentry]")) entry.setAttribute("role", "listitem");

  // Lines may break after any formula: keep the punctuation that follows with it.
  for (const formula of document.querySelectorAll("span.math")) {
    const text = formula.nextSibling;
    const marks = text && text.nodeType === Node.TEXT_NODE ? text.data.match(/^[.,;:!?)\]’”]+/) : null;
    if (!marks) continue;
    const together = document.createElement("span");
    together.className = "holds-together";
    text.splitText(marks[0].length);
    formula.before(together);
    together.append(formula, text);
  }

  // Elements that scroll sideways: keyboards reach them, and they fade where more is hidden.
  const wide = document.querySelectorAll(".book-drawing, div.math, .bd-article pre, .pst-scrollable-table-container");
  const fade = (part) => {
    const hidden = part.scrollWidth - part.clientWidth;
    part.classList.toggle("fades", hidden > 0);
    part.style.setProperty("--left", part.scrollLeft > 1 ? "2rem" : "0px");
    part.style.setProperty("--right", part.scrollLeft < hidden - 1 ? "2rem" : "0px");
  };
  const watch = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      fade(target);
      if (!target.matches(".book-drawing, div.math")) continue; // the theme sees to its own
      const scrolls = target.scrollWidth > target.clientWidth;
      const given = { tabindex: "0", role: "group", "aria-label": "Wide, scrolls sideways" };
      for (const [name, value] of Object.entries(given)) {
        if (scrolls) target.setAttribute(name, value);
        else target.removeAttribute(name);
      }
    }
  });
  for (const part of wide) {
    watch.observe(part);
    part.addEventListener("scroll", () => fade(part), { passive: true });
  }
});
