/* Refreshes the overview in place: scroll, focus and open parts stay as they are. */
"use strict";

(() => {
    const page = document.querySelector(".outbox-overview");
    const live = document.getElementById("outbox-live");
    const state = document.getElementById("outbox-refresh-state");
    const toggle = document.getElementById("outbox-refresh-toggle");
    const text = (name) => page.dataset[name];
    const idle = state.textContent;
    const refreshMs = Number(page.dataset.refreshS) * 1000;
    let shownAt = performance.now();
    let chartsAt = shownAt;
    let paused = sessionStorage.getItem("outbox-paused") === "yes";
    let timer = null;
    let verdict = null;

    const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || "" : "");

    function isSame(one, other) {
        return one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);
    }

    /* Change a node into another one, and keep what the user sees of it: a refresh does not close details. */
    function morph(node, wanted) {
        if (node.nodeType !== Node.ELEMENT_NODE) {
            if (node.data !== wanted.data) node.data = wanted.data;
            return;
        }
        if (node.hasAttribute("data-keep")) return;
        for (const { name } of [...node.attributes]) {
            if (name !== "open" && !wanted.hasAttribute(name)) node.removeAttribute(name);
        }
        for (const { name, value } of wanted.attributes) {
            if (name !== "open" && node.getAttribute(name) !== value) node.setAttribute(name, value);
        }
        morphChildren(node, wanted, false);
    }

    function morphChildren(node, wanted, keepsMissing) {
        let current = node.firstChild;
        for (const child of [...wanted.childNodes]) {
            const key = keyOf(child);
            const found = key
                ? [...node.children].find((each) => isSame(each, child))
                : current && isSame(current, child) ? current : null;
            if (!found) {
                node.insertBefore(document.importNode(child, true), current);
                continue;
            }
            if (found !== current) node.insertBefore(found, current);
            morph(found, child);
            current = found.nextSibling;
        }
        while (current) {
            const next = current.nextSibling;
            if (!(keepsMissing && keyOf(current))) current.remove();
            current = next;
        }
    }

    /* The charts are missing from most refreshes of a long period, and stay then. */
    function show(html) {
        const fresh = new DOMParser().parseFromString(html, "text/html").body;
        if (!fresh.querySelector("#outbox-verdict")) throw new Error(text("textLogin"));
        const focused = document.activeElement;
        const charts = document.getElementById("outbox-charts");
        const after = fresh.querySelector("#outbox-handlers");
        const hasCharts = fresh.querySelector("#outbox-charts") !== null;
        if (charts && !hasCharts) after.before(charts.cloneNode(false));
        if (charts && !hasCharts) charts.dataset.keep = "";
        morphChildren(live, fresh, true);
        if (charts && !hasCharts) delete charts.dataset.keep;
        if (focused && focused !== document.activeElement && focused.isConnected) {
            focused.focus({ preventScroll: true });
        }
        shownAt = performance.now();
        if (hasCharts) {
            chartsAt = shownAt;
            document.dispatchEvent(new Event("outbox:timeline"));
        }
        announce();
    }

    function announce() {
        const section = document.getElementById("outbox-verdict");
        if (verdict !== null && verdict !== section.dataset.verdict) {
            document.getElementById("outbox-verdict-status").textContent =
                section.querySelector(".outbox-sentence").textContent;
        }
        verdict = section.dataset.verdict;
    }

    async function refresh() {
        const charts = document.getElementById("outbox-charts");
        const wantsCharts = performance.now() - chartsAt >= Number(charts.dataset.everyS) * 1000 - refreshMs / 2;
        try {
            const url = page.dataset.liveUrl + (wantsCharts ? "" : "&charts=no");
            const response = await fetch(url, { redirect: "error", credentials: "same-origin" });
            if (!response.ok) throw new Error(`HTTP ${response.status}`);
            show(await response.text());
            say(idle, false);
        } catch (error) {
            say(text("textFailed").replace("{error}", error.message), true);
        }
        schedule();
    }

    /* A status that is written again would be read aloud again. */
    function say(message, isError) {
        if (state.textContent !== message) state.textContent = message;
        state.classList.toggle("outbox-failed-count", isError);
    }

    function schedule() {
        clearTimeout(timer);
        if (!paused && !document.hidden) timer = setTimeout(refresh, refreshMs);
    }

    function showToggle() {
        toggle.textContent = text(paused ? "textResume" : "textPause");
        toggle.setAttribute("aria-pressed", String(paused));
        say(paused ? text("textPaused") : idle, false);
    }

    toggle.addEventListener("click", () => {
        paused = !paused;
        sessionStorage.setItem("outbox-paused", paused ? "yes" : "no");
        showToggle();
        if (paused) schedule();
        else refresh();
    });
    document.addEventListener("visibilitychange", () => {
        if (!paused && !document.hidden && performance.now() - shownAt > refreshMs) refresh();
        else schedule();
    });
    setInterval(() => {
        const seconds = Math.round((performance.now() - shownAt) / 1000);
        document.getElementById("outbox-age").textContent = " · " + text("textAge").replace("{n}", seconds);
    }, 1000);
    document.querySelector(".outbox-refresh").hidden = false;
    showToggle();
    announce();
    schedule();
})();
