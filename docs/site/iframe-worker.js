// Search runs in a Web Worker, and browsers refuse those to pages that lie on a disk (file://).
// There a hidden frame does the worker's part, in the same thread. The theme looks for a script of
// this name, and would else fetch one from the network.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      // What the worker's script posts comes out here.
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = frame.contentDocument.createElement("script")
      script.src = url
      script.onload = () => {
        this.inside = inside
        this.waiting.splice(0).forEach(data => this.postMessage(data))
      }
      frame.contentDocument.body.appendChild(script)
    }

    postMessage(data) {
      if (this.inside)
        this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else
        this.waiting.push(data)
    }
  }
  window.IFrameWorker = IFrameWorker
  window.Worker = IFrameWorker
}
