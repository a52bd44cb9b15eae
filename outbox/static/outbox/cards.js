/* On a phone, the rows of a list are cards: name their values, and close the filters above them. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
    const list = document.getElementById("result_list");
    if (list) {
        const titles = [...list.querySelectorAll("thead th")].map((head) => head.textContent.trim());
        for (const row of list.tBodies[0].rows) {
            [...row.cells].forEach((cell, index) => {
                if (titles[index] && !cell.classList.contains("action-checkbox")) cell.dataset.label = titles[index];
            });
        }
    }
    if (matchMedia("(max-width: 767px)").matches) {
        document.querySelectorAll("#changelist-filter details[open]").forEach((each) => each.removeAttribute("open"));
    }
});
