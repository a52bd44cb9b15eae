/* The charts of the overview: uPlot draws the values of the table below them. */
"use strict";

(() => {
    const HEIGHT = 190;
    const SERIES = {
        flow: [["published"], ["dispatched", { dash: [7, 4] }], ["succeeded"]],
        backlog: [["backlog", { fills: true }], ["oldest", { scale: "right" }]],
        errors: [["retried", { bars: true }], ["failed", { bars: true }]],
    };
    const frame = document.querySelector(".outbox-plots");
    if (!frame || typeof uPlot === "undefined") return;
    const language = document.documentElement.lang || undefined;
    const compact = new Intl.NumberFormat(language, { notation: "compact", maximumFractionDigits: 1 });
    const sync = uPlot.sync("outbox");
    let plots = [];

    /* Read the table, the oldest row first. */
    function read() {
        const table = document.getElementById("outbox-timeline");
        const heads = [...table.querySelectorAll("thead [data-series]")];
        const rows = [...table.querySelectorAll("tbody tr")].reverse();
        const columns = {};
        heads.forEach((head, index) => {
            columns[head.dataset.series] = {
                label: head.textContent,
                values: rows.map((row) => {
                    const value = row.querySelectorAll("td")[index].dataset.value;
                    return value === "" ? null : Number(value);
                }),
                texts: rows.map((row) => row.querySelectorAll("td")[index].textContent),
            };
        });
        return {
            columns,
            at: rows.map((row) => Number(row.dataset.at)),
            times: rows.map((row) => row.querySelector("th").textContent),
            zone: table.dataset.zone,
            zoneLabel: table.dataset.zoneLabel,
            step: Number(table.dataset.stepS),
        };
    }

    /* Hours and minutes, and the day at its first label. */
    function clock(timeline) {
        const options = { timeZone: timeline.zone, hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
        const hours = new Intl.DateTimeFormat(language, options);
        const days = new Intl.DateTimeFormat(language, { timeZone: timeline.zone, weekday: "short", day: "numeric" });
        return (_plot, ticks) => {
            let day = "";
            return ticks.map((tick) => {
                const before = day;
                day = days.format(tick * 1000);
                return hours.format(tick * 1000) + (day === before ? "" : `\n${day}`);
            });
        };
    }

    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const ink = () => getComputedStyle(frame).color;

    function age(seconds) {
        if (seconds < 60) return `${Math.round(seconds * 10) / 10} s`;
        if (seconds < 3600) return `${Math.round(seconds / 6) / 10} min`;
        if (seconds < 86400) return `${Math.round(seconds / 360) / 10} h`;
        return `${Math.round(seconds / 8640) / 10} d`;
    }

    /* Bars lie upon one another: the lower series is the sum of both. */
    function dataOf(name, timeline) {
        const values = SERIES[name].map(([series]) => timeline.columns[series].values);
        if (name === "errors") values[0] = values[0].map((value, index) => value + values[1][index]);
        return [timeline.at, ...values];
    }

    /* The last step has not ended: it is hatched, and its end is now. */
    function markNow(plot, timeline) {
        const start = timeline.at[timeline.at.length - 1];
        const left = plot.valToPos(start, "x", true);
        const { top, height, width, left: edge } = plot.bbox;
        const right = Math.min(plot.valToPos(start + timeline.step, "x", true), edge + width);
        const context = plot.ctx;
        context.save();
        context.beginPath();
        context.rect(left, top, right - left, height);
        context.clip();
        context.globalAlpha = 0.35;
        context.strokeStyle = ink();
        context.lineWidth = devicePixelRatio;
        for (let x = left - height; x < right; x += 5 * devicePixelRatio) {
            context.beginPath();
            context.moveTo(x, top + height);
            context.lineTo(x + height, top);
            context.stroke();
        }
        context.restore();
        context.save();
        context.fillStyle = ink();
        context.textAlign = "right";
        context.font = `${11 * devicePixelRatio}px sans-serif`;
        context.fillText(frame.dataset.textNow, right, top - 4 * devicePixelRatio);
        context.restore();
    }

    function seriesOf(name, timeline) {
        return SERIES[name].map(([series, { dash, scale = "y", bars, fills } = {}]) => {
            const stroke = colour(`--outbox-line-${series}`);
            const filled = bars ? stroke : fills ? `${stroke}33` : undefined;
            const paths = bars ? uPlot.paths.bars({ size: [0.8, 40], align: 1 }) : undefined;
            return {
                label: timeline.columns[series].label, scale, stroke, dash, paths, fill: filled,
                width: bars ? 0 : 2, points: { show: false }, spanGaps: false,
            };
        });
    }

    function axesOf(figure, timeline) {
        const line = { stroke: ink(), grid: { stroke: colour("--outbox-grid"), width: 1 }, ticks: { show: false } };
        const right = figure.dataset.unitRight;
        const axes = [
            { ...line, grid: { show: false }, values: clock(timeline), space: 60 },
            { ...line, size: 56, label: figure.dataset.unit, labelSize: 18, labelGap: 0,
              values: (_plot, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? compact.format(tick) : "")) },
        ];
        if (right) {
            axes.push({ ...line, scale: "right", side: 1, size: 60, grid: { show: false }, label: right,
                        labelSize: 18, labelGap: 0, values: (_plot, ticks) => ticks.map(age) });
        }
        return axes;
    }

    function build(figure, timeline) {
        const name = figure.dataset.plot;
        const atLeast = (least) => (_plot, _low, high) => [0, Math.max(least, (high || 0) * 1.08)];
        const plot = new uPlot(
            {
                width: figure.clientWidth, height: HEIGHT, padding: [18, 16, 0, 0],
                tzDate: (at) => uPlot.tzDate(new Date(at * 1000), timeline.zone),
                legend: { show: false },
                cursor: { y: false, sync: { key: sync.key }, drag: { x: false, y: false }, points: { size: 7 } },
                scales: {
                    x: { range: (_plot, low) => [low, timeline.at[timeline.at.length - 1] + timeline.step] },
                    y: { range: atLeast(4) }, right: { range: atLeast(10) },
                },
                series: [{}, ...seriesOf(name, timeline)],
                axes: axesOf(figure, timeline),
                hooks: {
                    draw: [(self) => markNow(self, current)],
                    setCursor: [(self) => showValues(figure, self.cursor.idx)],
                },
            },
            dataOf(name, timeline),
            figure.querySelector(".outbox-canvas"),
        );
        return { figure, plot, name };
    }

    /* The last step that a relay has sampled, or else the last whole step. */
    function lastStep() {
        const sampled = current.columns.backlog.values.findLastIndex((value) => value !== null);
        return sampled >= 0 ? sampled : Math.max(current.at.length - 2, 0);
    }

    /* Write the values of one time, or without it of the last step. */
    function showValues(figure, index) {
        const at = index ?? lastStep();
        const readout = figure.querySelector(".outbox-readout");
        const parts = SERIES[figure.dataset.plot].map(([series]) => {
            const column = current.columns[series];
            const value = column.values[at] === null ? frame.dataset.textNone : column.texts[at];
            return [series, `${column.label} ${value}`];
        });
        const time = document.createElement("b");
        time.textContent = `${current.times[at]} ${current.zoneLabel}`;
        const nodes = parts.flatMap(([series, shown]) => {
            const swatch = document.createElement("span");
            swatch.className = `outbox-swatch outbox-swatch-${series}`;
            const label = document.createElement("span");
            label.className = "outbox-value";
            label.append(swatch, shown);
            return [" ", label];
        });
        readout.replaceChildren(time, ...nodes);
        figure.dataset.index = index ?? "";
    }

    function onKey(event, figure) {
        const last = current.at.length - 1;
        const index = figure.dataset.index === "" ? last : Number(figure.dataset.index);
        const moves = {
            ArrowLeft: Math.max(index - 1, 0), ArrowRight: Math.min(index + 1, last), Home: 0, End: last,
        };
        if (event.key === "Escape") moves.Escape = null;
        if (!(event.key in moves)) return;
        event.preventDefault();
        const wanted = moves[event.key];
        const { plot } = plots.find((each) => each.figure === figure);
        const left = wanted === null ? -10 : plot.valToPos(current.at[wanted], "x");
        for (const each of plots) {
            each.plot.setCursor({ left, top: wanted === null ? -10 : 5 }, false);
            showValues(each.figure, wanted);
        }
    }

    function prepare(figure) {
        const canvas = document.createElement("div");
        canvas.className = "outbox-canvas";
        canvas.setAttribute("aria-hidden", "true");
        const readout = document.createElement("p");
        readout.className = "outbox-readout";
        figure.append(canvas, readout);
        figure.tabIndex = 0;
        figure.setAttribute("role", "group");
        const caption = figure.querySelector("figcaption").textContent;
        figure.setAttribute("aria-label", `${caption}. ${frame.dataset.textHelp}`);
        // Only the chart that has the focus speaks.
        figure.addEventListener("focus", () => readout.setAttribute("aria-live", "polite"));
        figure.addEventListener("blur", () => readout.removeAttribute("aria-live"));
        figure.addEventListener("keydown", (event) => onKey(event, figure));
        figure.dataset.index = "";
    }

    function rebuild() {
        for (const { plot } of plots) plot.destroy();
        plots = figures.map((figure) => build(figure, current));
        figures.forEach((figure) => showValues(figure, null));
    }

    function update() {
        const step = current.step;
        current = read();
        if (current.step !== step) return rebuild();
        for (const { figure, plot, name } of plots) {
            plot.setData(dataOf(name, current));
            showValues(figure, figure.dataset.index === "" ? null : Number(figure.dataset.index));
        }
    }

    let current = read();
    const figures = [...frame.querySelectorAll("figure")];
    figures.forEach(prepare);
    rebuild();
    document.addEventListener("outbox:timeline", update);
    new ResizeObserver(() => {
        for (const { figure, plot } of plots) plot.setSize({ width: figure.clientWidth, height: HEIGHT });
    }).observe(frame);
    new MutationObserver(rebuild).observe(document.documentElement, {
        attributes: true, attributeFilter: ["data-theme", "data-bs-theme", "class"],
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
})();
