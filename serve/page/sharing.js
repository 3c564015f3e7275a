// The link to a view: copied, or shown for copying where the browser does not let a page copy.

export class Sharing {
  constructor(box) {
    this.box = box;
    this.button = box.querySelector("button");
    this.said = box.querySelector("[role=status]");
    this.link = box.querySelector("input");
    this.button.addEventListener("click", () => this.copy());
  }

  show({ picture, view, busy }) {
    const found = Boolean(view.sample || view.kept);
    this.box.hidden = !picture;
    this.button.disabled = !found;
    this.button.title = found ? "" : busy ? "The service is still reading the picture." : "The service has not kept this picture, so a link would not find it.";
    if (this.copied !== location.href) {
      this.said.textContent = "";
      this.link.hidden = true;
    }
  }

  async copy() {
    this.copied = location.href;
    try {
      await navigator.clipboard.writeText(this.copied);
      this.said.textContent = "Copied";
    } catch {
      this.link.hidden = false;
      this.link.value = this.copied;
      this.link.select();
      this.said.textContent = "Copy this:";
    }
  }
}
