"use strict";
// Keeps a watched page current: fetches it again and replaces what has changed, without moving the reader's place.
(() => {
const EVERY = 3000; // milliseconds between two looks
const notice = document.getElementById("watch");
const keep = (name, x) => { try { sessionStorage.setItem(name, x); } catch { /* storage is forbidden: keep nothing */ } };
const kept = (name) => { try { return sessionStorage.getItem(name); } catch { return null; } };
let seen = null, current = new Date();

function say(text) {
  if (notice.textContent !== text) notice.textContent = text;
  notice.hidden = !text;
}
function localTimes(root) { // converts times to the reader's clock
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime.replace(/(\d\d)(\d\d)$/, "$1:$2"));
    const today = at.toDateString() === new Date().toDateString();
    if (!isNaN(at)) time.textContent = today ? at.toLocaleTimeString() : at.toLocaleString();
  }
}
function patch(old, fresh) { // turns `old` into `fresh`; leaves alone what is equal, or belongs to a script
  if (old.isEqualNode(fresh) || old.dataset?.own !== undefined) return;
  if (old.nodeType !== Node.ELEMENT_NODE) { old.nodeValue = fresh.nodeValue; return; }
  const differs = ({ name }) => name !== "open" && old.getAttribute(name) !== fresh.getAttribute(name);
  for (const { name } of [...old.attributes, ...fresh.attributes].filter(differs)) {
    if (fresh.hasAttribute(name)) old.setAttribute(name, fresh.getAttribute(name)); else old.removeAttribute(name);
  }
  const rest = new Set(old.childNodes);
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const found = [...rest].find((x) => x.nodeName === child.nodeName && (x.id || "") === (child.id || ""));
    while (at && !rest.has(at)) at = at.nextSibling;
    rest.delete(found);
    if (!found) old.insertBefore(child, at);
    else {
      if (found !== at) old.insertBefore(found, at);
      patch(found, child);
    }
  }
  for (const gone of rest) gone.remove();
}
function exchange(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const [data, other] = [document, fresh].map((x) => x.getElementById("data")?.textContent);
  if (data !== other) { location.reload(); return; } // the step was sampled again
  localTimes(fresh);
  const places = []; // the element being read, and its ancestors
  for (let x = document.elementFromPoint(innerWidth / 2, 90); x && x !== document.body; x = x.parentElement) {
    places.push([x, x.getBoundingClientRect().top]);
  }
  const scrolled = scrollY;
  patch(document.head, fresh.head);
  patch(document.body, fresh.body);
  const place = places.find(([x]) => x.isConnected);
  if (scrolled && place) scrollBy({ top: place[0].getBoundingClientRect().top - place[1], behavior: "instant" });
}
function followNewest() {
  const newest = document.getElementById("newest"), follow = document.getElementById("follow");
  if (!newest || !follow?.checked) return;
  for (const id of ["find", "view"]) keep(id, document.getElementById(id)?.value ?? "");
  location.replace(newest.href);
}
async function look() {
  let text = null, mark;
  try {
    const answer = await fetch(location.pathname, { cache: "no-cache", signal: AbortSignal.timeout(20000) });
    mark = answer.headers.get("ETag");
    if (answer.ok && mark !== seen) text = await answer.text();
    if (answer.ok) current = new Date();
    say(answer.ok ? "" : "This page is no longer there: the run went back to an earlier step. It stays readable here.");
  } catch {
    say(`The watch has ended or cannot be reached. This page shows what it had at ${current.toLocaleTimeString()}.`);
  }
  if (text !== null) { exchange(text); seen = mark; }
  followNewest();
}
async function loop() {
  if (!document.hidden) await look();
  setTimeout(loop, EVERY);
}
function restore() { // restores the search and view of the previous step's page
  for (const [id, event] of [["view", "change"], ["find", "input"]]) {
    const found = document.getElementById(id), value = kept(id);
    if (!found || !value) continue;
    found.value = value;
    found.dispatchEvent(new Event(event));
    keep(id, "");
  }
  const follow = document.getElementById("follow");
  if (follow) {
    follow.checked = kept("follow") === "1";
    follow.addEventListener("change", () => { keep("follow", follow.checked ? "1" : ""); followNewest(); });
  }
}
localTimes(document);
restore();
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
setTimeout(loop, EVERY);
})();
