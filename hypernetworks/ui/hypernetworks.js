/* Keeps the training tab up to date, and sends captions that were edited in place. Works in every gradio version: it only clicks a hidden
   button of the page and reads the page's own elements. */
(() => {
    "use strict";
    if (window.hypernetworks) return;

    const EVERY = 1000; // milliseconds between looks at a run
    const PATIENCE = 5000; // milliseconds until an answer that did not come is asked for again
    let asked = { tick: null, at: 0 };

    // gradio 3 may put the page into a shadow root
    const page = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const find = (selector) => page().querySelector(selector);

    function ask(status) {
        const button = find("#hypernetworks_poll");
        if (!button) return;
        asked = { tick: status.dataset.tick, at: Date.now() };
        button.click();
    }

    /* A run goes on without the page: the first look finds it again, then one look a second follows it to its end. */
    function look() {
        const status = find("#hypernetworks_status [data-state]");
        if (!status || document.hidden || !["unknown", "running"].includes(status.dataset.state)) return;
        if (asked.tick !== status.dataset.tick || Date.now() - asked.at > PATIENCE) ask(status);
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

    page().addEventListener("input", (event) => {
        const field = event.composedPath()[0];
        if (field.dataset?.picture) field.classList.toggle("hypernetworks-edited", field.value !== field.defaultValue);
    });
    document.addEventListener("visibilitychange", () => {
        const status = find("#hypernetworks_status [data-state]");
        if (status && !document.hidden) ask(status);
    });
    window.setInterval(look, EVERY);
    window.hypernetworks = { withEdits: (values) => [edits(), ...values.slice(1)] };
})();
