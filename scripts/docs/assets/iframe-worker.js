// Search from file://: browsers refuse workers there, so the script of a worker runs in a hidden frame.
if (location.protocol === "file:") {
  function inFrame(url) {
    window.postMessage = (message) => parent.dispatchEvent(new MessageEvent(`worker:${url}`, { data: message }))
    window.importScripts = (...urls) =>
      urls.reduce(
        (before, src) =>
          before.then(() => new Promise((onload) => document.body.append(Object.assign(document.createElement("script"), { src, onload })))),
        Promise.resolve()
      )
  }

  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true })
      document.body.append(this.frame)
      window.addEventListener(`worker:${url}`, ({ data }) => this.dispatchEvent(new MessageEvent("message", { data })))
      const { document: inner } = this.frame.contentWindow
      inner.open() // forgets listeners of the frame, so `onload` comes after it
      inner.write(`<body><script>(${inFrame})("${url}")</script><script src="${url}"></script></body>`)
      inner.close()
      this.ready = new Promise((resolve) => (this.frame.contentWindow.onload = resolve))
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
