// The gallery of `synthnb.review`: one image of the page is current, keys and buttons send what a person says about it, and a card
// shows a decision only when the kernel has answered that it is on the disk.
const MARKS = { accept: "\u2713", reject: "\u2715", relabel: "\u2192" };
const SAID = { accept: "accepted", reject: "rejected", relabel: "relabelled" };
const LEGEND = [
  ["A", "accept"], ["X", "reject"], ["L", "relabel"], ["U", "undo"], ["\u21e7A", "accept the rest"], ["\u2190\u2191\u2192\u2193", "move"],
  ["N", "next page"], ["P", "previous page"], ["G", "first without a decision"],
];
const PATIENCE = 4000; // milliseconds without an answer after which a person is told

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

class GalleryView {
  constructor(model, el) {
    this.model = model;
    this.current = 0;
    this.pending = new Map(); // id -> how many messages about it are not answered
    this.queue = []; // one message is under way at a time: JupyterLab may bring two to the kernel in another order
    this.name = crypto.getRandomValues(new Uint32Array(1))[0];
    this.sent = 0;
    this.urls = [];
    this.build(el);
    this.listeners = [
      ["change:cards", () => this.showPage()], ["change:states", () => this.showStates()],
      ["change:counts", () => this.showCounts()], ["msg:custom", (message) => this.receive(message)],
    ];
    for (const [event, listener] of this.listeners) model.on(event, listener);
    this.showPage();
    this.showCounts();
  }

  // ---- what there is to see

  build(el) {
    this.root = make("div", { class: "synthnb-gallery", role: "group", "aria-label": "gallery", onkeydown: (event) => this.press(event) });
    this.root.style.setProperty("--side", `${this.model.get("side")}px`);
    this.bar = make("progress", { "aria-label": "images looked at" });
    this.counts = make("span", { class: "counts" });
    this.pages = make("span", { class: "pages" });
    this.told = make("p", { class: "told" });
    this.alert = make("p", { class: "alert", role: "alert", hidden: true });
    this.grid = make("div", { class: "cards", role: "listbox", "aria-label": "images", "aria-orientation": "horizontal" });
    this.root.append(
      make("div", { class: "line" }, this.bar, this.counts, this.turning()),
      this.acting(), this.relabelling(), this.legend(), this.alert, this.told, this.grid,
    );
    el.append(this.root);
  }

  button(text, key, action, kind = "") {
    return make("button", { type: "button", class: kind, title: `key ${key}`, onclick: () => { action(); this.focus(); } },
      text, make("kbd", { "aria-hidden": "true" }, key));
  }

  turning() {
    return make("span", { class: "turn" }, this.button("previous", "P", () => this.turn(-1)), this.pages, this.button("next", "N", () => this.turn(1)));
  }

  acting() {
    return make("div", { class: "line", role: "toolbar", "aria-label": "what is said about the current image" },
      this.button("Accept", "A", () => this.decide("accept"), "accept"), this.button("Reject", "X", () => this.decide("reject"), "reject"),
      make("button", { type: "button", class: "relabel", title: "key L", onclick: () => this.ask() }, "Relabel\u2026", make("kbd", { "aria-hidden": "true" }, "L")),
      this.button("Undo", "U", () => this.undo()), this.button("Accept the rest of the page", "\u21e7A", () => this.acceptRest()));
  }

  relabelling() {
    const known = `synthnb-classes-${Math.random().toString(36).slice(2)}`;
    this.wanted = make("input", { list: known, autocomplete: "off", spellcheck: "false", oninput: () => this.wanted.setCustomValidity("") });
    this.form = make("form", { class: "line", hidden: true, onsubmit: (event) => { event.preventDefault(); this.relabel(); } },
      make("label", {}, "It shows class ", this.wanted), make("button", { type: "submit" }, "Relabel", make("kbd", { "aria-hidden": "true" }, "\u21b5")),
      make("button", { type: "button", onclick: () => this.stopAsking() }, "Cancel", make("kbd", { "aria-hidden": "true" }, "Esc")),
      make("datalist", { id: known }, ...this.model.get("classes").map((name) => make("option", { value: name }))));
    return this.form;
  }

  legend() {
    const keys = LEGEND.map(([key, text]) => make("span", {}, make("kbd", {}, key), ` ${text}`));
    return make("p", { class: "legend", "aria-label": "keys" }, ...keys);
  }

  card(card, i) {
    const url = URL.createObjectURL(new Blob([card.image], { type: card.type }));
    this.urls.push(url);
    const quick = (decision) => make("button", { type: "button", class: decision, tabindex: -1, "aria-hidden": "true", title: decision,
      onclick: (event) => { event.stopPropagation(); this.select(i); this.decide(decision); } }, MARKS[decision]);
    const image = make("img", { src: url, alt: "", draggable: "false", onload: () => this.root.classList.toggle("pixels", image.naturalWidth < 96) });
    return make("div", { class: "card", role: "option", tabindex: -1, title: `${card.class}: ${card.prompt}`, "data-id": card.id, onclick: () => this.select(i),
      onfocus: () => this.select(i, false), onmouseenter: () => this.tell(i), onmouseleave: () => this.tell(this.current) },
      make("span", { class: "picture" }, image, make("span", { class: "quick" }, quick("accept"), quick("reject"))),
      make("span", { class: "mark" }), make("span", { class: "name" }, card.class));
  }

  // ---- what the kernel says

  showPage() {
    const inside = this.root.contains(document.activeElement);
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.cards = this.model.get("cards");
    this.grid.replaceChildren(...this.cards.map((card, i) => this.card(card, i)));
    this.pages.textContent = `page ${this.model.get("page") + 1} of ${this.model.get("pages")}`;
    this.stopAsking(false);
    this.showStates();
    this.select(Math.max(0, this.cards.findIndex((card) => card.id === this.model.get("at"))), inside);
  }

  showStates() {
    const states = this.model.get("states");
    this.cards.forEach((card, i) => {
      const node = this.grid.children[i], state = states[card.id] ?? {};
      node.dataset.decision = state.decision ?? "";
      node.classList.toggle("pending", this.pending.has(card.id));
      node.querySelector(".mark").textContent = MARKS[state.decision] ?? "";
      node.querySelector(".name").textContent = state.decision === "relabel" ? `${card.class} \u2192 ${state.class}` : card.class;
      node.setAttribute("aria-label", `${card.class}, ${SAID[state.decision] ?? "no decision"}. ${card.prompt}`);
    });
  }

  showCounts() {
    const { total, accept, reject, relabel } = this.model.get("counts"), done = accept + reject + relabel;
    this.bar.max = Math.max(total, 1);
    this.bar.value = done;
    this.counts.textContent = `${done} of ${total} looked at by ${this.model.get("reviewer")}: ${accept} accepted, ${reject} rejected, ${relabel} relabelled`;
  }

  receive(message) {
    if (message.n !== this.queue[0]?.n) return; // the answer to a view in another window
    clearTimeout(this.timer);
    for (const id of this.queue.shift().ids ?? []) {
      if (this.pending.get(id) > 1) this.pending.set(id, this.pending.get(id) - 1);
      else this.pending.delete(id);
    }
    this.warn(message.why ? `${message.ids.length ? "Not saved: " : ""}${message.why}` : "");
    this.showStates();
    if (message.at) this.select(Math.max(0, this.cards.findIndex((card) => card.id === message.at)));
    this.sendNext();
  }

  warn(text) {
    this.alert.textContent = text;
    this.alert.hidden = !text;
  }

  // ---- what a person does

  select(i, focus = true) {
    if (!this.cards.length) return;
    this.current = Math.min(Math.max(i, 0), this.cards.length - 1);
    [...this.grid.children].forEach((node, k) => {
      node.tabIndex = k === this.current ? 0 : -1;
      node.setAttribute("aria-selected", k === this.current);
    });
    this.tell(this.current);
    if (focus) this.focus();
  }

  focus() {
    const node = this.grid.children[this.current];
    if (node && document.activeElement !== node) node.focus({ preventScroll: false });
  }

  tell(i) {
    const card = this.cards[i];
    this.told.replaceChildren(...(card ? [make("b", {}, card.class), ` ${card.prompt} `, make("code", {}, card.id)] : ["There is nothing to look at."]));
  }

  send(message) {
    for (const id of message.ids ?? []) this.pending.set(id, (this.pending.get(id) ?? 0) + 1);
    this.showStates();
    this.sent += 1;
    this.queue.push({ ...message, n: `${this.name}-${this.sent}` });
    if (this.queue.length === 1) this.sendNext();
  }

  sendNext() {
    if (!this.queue.length) return;
    this.timer = setTimeout(() => this.complain("the kernel does not answer"), PATIENCE);
    try {
      this.model.send(this.queue[0]);
    } catch (error) {
      this.complain(error.message);
    }
  }

  complain(why) {
    this.warn(`${this.pending.size} not saved: ${why}. Run the cell again; what carries a mark without a dashed frame is saved.`);
  }

  decide(decision, name) {
    const card = this.cards[this.current];
    if (!card) return;
    this.send({ kind: "decide", ids: [card.id], decision, class: name ?? card.class });
    this.select(this.current + 1);
  }

  acceptRest() {
    const states = this.model.get("states");
    const ids = this.cards.map((card) => card.id).filter((id) => !states[id]?.decision && !this.pending.has(id));
    if (ids.length) this.send({ kind: "decide", ids, decision: "accept" });
  }

  undo() { this.send({ kind: "undo" }); }

  turn(by) { this.send({ kind: "page", to: this.model.get("page") + by }); }

  ask() {
    this.form.hidden = false;
    this.wanted.value = "";
    this.wanted.focus();
  }

  relabel() {
    const typed = this.wanted.value.trim().toLowerCase(), classes = this.model.get("classes");
    const found = classes.filter((name) => name.toLowerCase() === typed);
    const begun = typed ? classes.filter((name) => name.toLowerCase().startsWith(typed)) : [];
    const name = found[0] ?? (begun.length === 1 ? begun[0] : undefined);
    if (name === undefined) {
      this.wanted.setCustomValidity(begun.length ? `${begun.length} classes begin so: ${begun.slice(0, 5).join(", ")}` : "no class is called so");
      this.wanted.reportValidity();
      return;
    }
    this.stopAsking(false);
    this.decide(name === this.cards[this.current].class ? "accept" : "relabel", name);
  }

  stopAsking(focus = true) {
    this.form.hidden = true;
    if (focus) this.focus();
  }

  columns() {
    const top = this.grid.children[0]?.offsetTop;
    const second = [...this.grid.children].findIndex((node) => node.offsetTop > top);
    return second < 0 ? this.cards.length : second;
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // JupyterLab's own, such as saving
    event.stopPropagation(); // or it would take an x for "cut this cell"
    if (event.target === this.wanted) {
      if (event.key === "Escape") this.stopAsking();
      return;
    }
    const actions = {
      a: () => (event.shiftKey ? this.acceptRest() : this.decide("accept")), x: () => this.decide("reject"), l: () => this.ask(), u: () => this.undo(),
      n: () => this.turn(1), p: () => this.turn(-1), g: () => this.send({ kind: "next" }), pagedown: () => this.turn(1), pageup: () => this.turn(-1),
      arrowleft: () => this.select(this.current - 1), arrowright: () => this.select(this.current + 1),
      arrowup: () => this.select(this.current - this.columns() < 0 ? this.current : this.current - this.columns()),
      arrowdown: () => this.select(this.current + this.columns()), home: () => this.select(0), end: () => this.select(this.cards.length - 1),
    };
    const action = actions[event.key.toLowerCase()];
    if (!action || (event.repeat && "axlu".includes(event.key.toLowerCase()))) return; // a key held down is not fifty decisions
    event.preventDefault();
    action();
  }

  remove() {
    for (const [event, listener] of this.listeners) this.model.off(event, listener);
    clearTimeout(this.timer);
    for (const url of this.urls) URL.revokeObjectURL(url);
  }
}

function render({ model, el }) {
  const view = new GalleryView(model, el);
  return () => view.remove();
}

export default { render };
