// A figure that is clicked, or chosen by keyboard, opens at its full size; Esc or a click closes it.
addEventListener("DOMContentLoaded", () => {
  const shown = document.createElement("dialog");
  shown.className = "enlarged";
  shown.setAttribute("aria-label", "Enlarged figure");
  shown.addEventListener("click", () => shown.close());
  shown.addEventListener("keydown", (event) => event.key === "Escape" && shown.close());
  document.body.append(shown);
  for (const figure of document.querySelectorAll("main article img")) {
    if (figure.closest("a")) continue;
    const open = () => {
      const copy = figure.cloneNode();
      for (const name of ["id", "class", "style", "width", "height", "tabindex", "role"])
        copy.removeAttribute(name);
      shown.replaceChildren(copy);
      shown.showModal();
      shown.scrollTo(0, 0);
    };
    figure.tabIndex = 0;
    figure.setAttribute("role", "button");
    figure.classList.add("enlarges");
    figure.title = "Click to enlarge";
    figure.addEventListener("click", open);
    figure.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open();
    });
  }
});
