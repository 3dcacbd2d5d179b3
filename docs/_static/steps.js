/* A figure of several steps: buttons, a slider and arrow keys show one step at a time. */
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("figure.book-steps")) {
    const steps = [...figure.querySelectorAll(".book-step")];
    if (steps.length < 2) continue;
    let current = 0;
    const bar = document.createElement("div");
    bar.className = "book-steps-bar";
    const button = (label, text, move) => {
      const element = document.createElement("button");
      element.type = "button";
      element.textContent = text;
      element.setAttribute("aria-label", label);
      element.addEventListener("click", () => show(current + move));
      return element;
    };
    const slider = document.createElement("input");
    slider.type = "range";
    slider.min = 0;
    slider.max = steps.length - 1;
    slider.setAttribute("aria-label", "Step");
    slider.addEventListener("input", () => show(Number(slider.value)));
    const count = document.createElement("span");
    count.setAttribute("aria-live", "polite");
    const show = (index) => {
      current = Math.min(Math.max(index, 0), steps.length - 1);
      steps.forEach((step, i) => { step.hidden = i !== current; });
      slider.value = current;
      count.textContent = `${current + 1} of ${steps.length}`;
    };
    bar.append(button("Previous step", "‹", -1), slider, button("Next step", "›", 1), count);
    figure.prepend(bar);
    show(0);
  }
});
