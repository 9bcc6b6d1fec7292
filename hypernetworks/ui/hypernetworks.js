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
    function conditions(about, [which, ...values]) {
        const said = saidBy(about, values.slice(about.rows.length));
        return about.rows.map((label, row) => which === label ? said : values[row]);
    }

    /* A network has been chosen in row `number` of a panel, while its `which` and conditions were these. */
    function chose(about, number, values) {
        latest[about.panel] = { row: number - 1, before: JSON.stringify(values.slice(0, 1 + about.rows.length)) };
    }

    /* What a panel shows of its conditions: `which`, the conditions, the questions. These move to the row that was chosen last, unless the user has
       answered something or looked at another row since. Nothing changes while the server is still to say what the row's network is. */
    function questions(about, [answer, which, ...values]) {
        Object.assign(known, JSON.parse(answer || "{}"));
        const count = about.rows.length;
        const [before, names, given] = [values.slice(0, count), values.slice(count, 2 * count), values.slice(2 * count, 2 * count + 9)];
        const rows = names.map((name) => known[name ?? ""]); // null: no generator; undefined: not known yet
        if (latest[about.panel]?.before !== JSON.stringify([which, ...before])) delete latest[about.panel];
        const row = latest[about.panel]?.row;
        let at = rows[row] ? row : about.rows.indexOf(which);
        if (at >= 0 && rows[at] === undefined) return Array(1 + count + about.questions).fill(update({}));
        if (!rows[at]) at = rows.findIndex(Boolean);
        const said = before.map((condition, row) => rows[row] === null ? "" : condition);
        const labels = about.rows.filter((_, row) => rows[row]);
        const shown = { choices: choices(about, labels), visible: labels.length > 1 };
        if (at < 0) return [update(shown), ...said, update({ visible: false }), ...Array(about.questions - 1).fill(update({}))];
        const answers = possible(rows[at], saidBy(about, given) === said[at] ? given : answersOf(about, said[at]));
        said[at] = saidBy(about, answers);
        return [update({ ...shown, value: about.rows[at] }), ...said, update({ visible: true }), ...offered(about, rows[at], answers)];
    }

    const latest = {}; // prefix of a panel -> the row chosen last, and what it was chosen before
    const known = {}; // name of a network -> what the generator can be asked for, or null
    const update = (properties) => ({ __type__: "update", ...properties });
    const choices = (about, list) => about.pairs ? list.map((one) => [one, one]) : list;

    /* ConditionInputs.offered for these answers. */
    function offered(about, { kinds, tasks }, answers) {
        const source = ([kind, text, reference, task]) => {
            const [inText, inPicture, inTask] = Object.keys(about.labels).map((one) => ({ visible: kind === one }));
            const chosen = { choices: kinds.map((one) => [one, one]), value: kind };
            return [chosen, { ...inText, value: text }, inPicture, { value: reference }, {}, { ...inTask, choices: choices(about, tasks), value: task }];
        };
        const blend = answers[8];
        return [...source(answers.slice(0, 4)), ...source(answers.slice(4, 8)), { value: blend }, { visible: blend > 0 }].map(update);
    }

    /* The answers that a generator can be given; a task that it does not know is told when it draws. */
    function possible({ kinds, tasks }, answers) {
        const kind = (one) => kinds.includes(one) ? one : kinds[0];
        const [first, text, reference, task, second, text2, reference2, task2, blend] = answers;
        return [kind(first), text, reference, task || (tasks[0] ?? ""), kind(second), text2, reference2, task2 || (tasks[0] ?? ""), blend];
    }

    /* The answers to the questions as arguments of a tag: ConditionInputs.said in the page. */
    function saidBy({ labels }, answers) {
        const blend = answers[8];
        const source = ([kind, ...given], number) => {
            const at = Object.keys(labels).indexOf(kind);
            return at < 0 || (number && !blend) ? [] : [`${labels[kind]}${number}=${written(given[at] ?? "")}`];
        };
        const said = [...source(answers.slice(0, 4), ""), ...source(answers.slice(4, 8), "2")];
        return (blend ? [...said, `blend=${blend}`] : said).join(":");
    }

    /* The other way round. */
    function answersOf({ labels, prompt }, said) {
        const given = new Map(said.split(":").map((part) => [part.split("=", 1)[0], part.slice(part.indexOf("=") + 1)]));
        const source = (number) => {
            const kind = Object.keys(labels).find((one) => given.has(labels[one] + number)) ?? prompt;
            return [kind, ...Object.values(labels).map((label) => decodeURIComponent(given.get(label + number) ?? ""))];
        };
        return [...source(""), ...source("2"), Number(given.get("blend") ?? 0)];
    }

    const written = (text) => {
        const end = text.trimEnd().length; // by an expression it would be looked for from each of many blanks
        return text.slice(0, end).replace(/^\s+|[%:<>#\x00-\x1f\x7f]/g, encodeURIComponent) + encodeURIComponent(text.slice(end));
    };

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
        chose,
        questions,
        resume,
        show: (name, block = "center") => find(`#hypernetworks_${name}`)?.scrollIntoView({ block }),
    };
})();
