// The search runs in a worker, which browsers refuse to start for pages from a folder: there a hidden frame stands for it.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      const script = frame.contentDocument.createElement("script");
      // What the script posts goes to the page; what the page posts waits until the script is there.
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const loaded = new Promise((resolve) => script.addEventListener("load", resolve, { once: true }));
      this.postMessage = (data) =>
        loaded.then(() => inner.dispatchEvent(new inner.MessageEvent("message", { data: structuredClone(data) })));
      this.terminate = () => frame.remove();
      script.src = url;
      frame.contentDocument.body.append(script);
    }
  };
  window.Worker = window.IFrameWorker;
}
