// Typeset what pymdownx.arithmatex marks, with the KaTeX beside this file.
function typeset() {
  for (const element of document.querySelectorAll(".arithmatex:not([data-typeset])")) {
    element.dataset.typeset = "";
    renderMathInElement(element, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
      throwOnError: false,
    });
  }
}

typeset(); // this script stands at the end of the page
document$.subscribe(typeset); // pages that are shown without a reload
