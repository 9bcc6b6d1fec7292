/* Keeps the training tab up to date, sends captions that were edited in place, and opens the library's rows. Works in every gradio version: it
   only clicks buttons of the page, hidden ones among them, and reads the page's own elements. */
(() => {
    "use strict";
    if (window.hypernetworks) return;

    const EVERY = 1000; // milliseconds between looks at a run
    const PATIENCE = 5000; // milliseconds until an answer that did not come is asked for again, and between looks when nothing is going on
    let asked = { tick: null, at: 0 };
    let inSight = false; // the library's table
    let chosen = "", resuming = ""; // names of networks on their way to the page
    let queued = ""; // what is to become of a run of the queue: "up 3"

    // gradio 3 may put the page into a shadow root
    const page = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const find = (selector) => page().querySelector(selector);

    function ask(status) {
        const button = find("#hypernetworks_poll");
        if (!button) return;
        asked = { tick: status.dataset.tick, at: Date.now() };
        button.click();
    }

    /* A run goes on without the page: the first look finds it again, then one look a second follows it to its end. In between another page may
       start one, so that a tab in sight looks now and then. */
    function look() {
        const status = find("#hypernetworks_status [data-state]");
        if (!status || document.hidden) return;
        const late = Date.now() - asked.at > PATIENCE;
        if (["unknown", "running"].includes(status.dataset.state) ? late || asked.tick !== status.dataset.tick : late && status.offsetParent) ask(status);
    }

    /* Captions that differ from what the check showed, as {folder, captions: {file name: caption}}. */
    function edits() {
        const report = find("#hypernetworks_report [data-folder]");
        const captions = {};
        for (const field of report?.querySelectorAll("textarea[data-picture]") ?? []) {
            if (field.value !== field.defaultValue) captions[field.dataset.picture] = field.value;
        }
        return JSON.stringify({ folder: report?.dataset.folder ?? "", captions });
    }

    /* The library is listed anew whenever its tab comes into sight. */
    function lookAtLibrary() {
        const before = inSight;
        inSight = Boolean(find("#hypernetworks_library_table")?.offsetParent);
        if (inSight && !before) find("#hypernetworks_library_refresh")?.click();
    }

    /* A row of the library is opened by a click on it. */
    function openRow(event) {
        const row = event.composedPath().find((part) => part.dataset?.hypernetwork !== undefined);
        if (!row) return;
        for (const other of row.parentElement.children) other.setAttribute("aria-selected", other === row);
        chosen = row.dataset.hypernetwork;
        find("#hypernetworks_library_open")?.click();
    }

    /* A button of a row of the queue. */
    function changeQueue(event) {
        const button = event.composedPath().find((part) => part.dataset?.queue !== undefined);
        if (!button || button.disabled) return;
        queued = button.dataset.queue;
        find(queued.startsWith("edit") ? "#hypernetworks_queue_edit" : "#hypernetworks_queue_act")?.click();
    }

    /* The conditions of all rows of a panel (hypernetworks/ui/generation_panel.py), where the questions are about the row that `which` names. Said
       here, not by the server: gradio 3 drops changes that come while it waits for an answer. */
    function conditions(labels, rows, [which, ...values]) {
        const said = saidBy(labels, values.slice(rows));
        return values.slice(0, rows).map((before, row) => which.endsWith(` ${row + 1}`) ? said : before);
    }

    /* The answers to the questions as arguments of a tag: ConditionInputs.said in the page. */
    function saidBy(labels, answers) {
        const [blend] = answers.slice(8);
        const source = ([kind, ...given], number) => {
            const at = Object.keys(labels).indexOf(kind);
            return at < 0 || (number && !blend) ? [] : [`${labels[kind]}${number}=${written(given[at] ?? "")}`];
        };
        const said = [...source(answers.slice(0, 4), ""), ...source(answers.slice(4, 8), "2")];
        return (blend ? [...said, `blend=${blend}`] : said).join(":");
    }

    const written = (text) => text.replace(/[%:<>#\x00-\x1f\x7f]|^\s+|\s+$/g, encodeURIComponent);

    /* Shows the training tab, wherever the page has it, and has it fill its form; gradio may build a tab only when it is shown. */
    function resume(name, patience = 50) {
        resuming = name;
        const tabs = [...page().querySelectorAll("[role=tab], .tab-nav button")];
        for (const tab of tabs.filter((tab) => tab.textContent.trim() === "Train Hypernetwork")) tab.click();
        const button = find("#hypernetworks_resume");
        if (button) button.click();
        else if (patience) window.setTimeout(resume, 100, name, patience - 1);
    }

    page().addEventListener("input", (event) => {
        const field = event.composedPath()[0];
        if (field.dataset?.picture) field.classList.toggle("hypernetworks-edited", field.value !== field.defaultValue);
    });
    document.addEventListener("visibilitychange", () => {
        const status = find("#hypernetworks_status [data-state]");
        if (status && !document.hidden) ask(status);
    });
    document.addEventListener("click", (event) => {
        openRow(event);
        changeQueue(event);
        window.setTimeout(lookAtLibrary, 100);
    });
    window.setInterval(() => { look(); lookAtLibrary(); }, EVERY);
    window.hypernetworks = {
        withEdits: (values) => [edits(), ...values.slice(1)],
        chosen: () => chosen,
        resuming: () => resuming,
        queued: () => queued,
        conditions,
        resume,
        show: (name, block = "center") => find(`#hypernetworks_${name}`)?.scrollIntoView({ block }),
    };
})();
