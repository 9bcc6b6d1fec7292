/* Web UIs load every file of this folder; the script itself lies with the rest of the interface. The time keeps an old copy from being used. */
(() => {
    const script = document.createElement("script");
    script.src = new URL(`../hypernetworks/ui/hypernetworks.js?${Date.now()}`, document.currentScript.src);
    document.head.append(script);
})();
