// While a study runs, `trueoracle watch` serves the page: it fills in when more is recorded.

const WAIT = 2000;

/** Takes what another version of the page says: what is drawn stays, all else is replaced. */
function fillIn(fresh) {
  const seen = document.activeElement;
  const place = focusables().indexOf(seen);
  const open = [...document.querySelectorAll("main details[open] > summary")].map((one) => one.textContent);
  const study = data.studies[state.study]?.label;
  takeData(fresh);
  document.documentElement.dataset.version = fresh.documentElement.dataset.version;
  controls.dataset.study = fresh.getElementById("controls").dataset.study;
  for (const part of ["header", "nav"]) document.querySelector(part).replaceChildren(...fresh.querySelector(part).childNodes);
  const main = document.querySelector("main");
  const wanted = [...fresh.querySelector("main").children].map((one) => (one.id && kept(document.getElementById(one.id), one)) || one);
  for (const one of [...main.children]) if (!wanted.includes(one)) one.remove();
  wanted.forEach((one, at) => main.children[at] !== one && main.insertBefore(one, main.children[at] ?? null));
  for (const one of main.querySelectorAll("details > summary")) if (open.includes(one.textContent)) one.parentElement.open = true;
  if (study === undefined && data.studies.length) readFragment();
  else if (data.studies.length) {
    state.study = String(data.studies.findIndex((one) => one.label === study));
    settle();
  }
  start();
  if (document.activeElement === document.body && seen !== document.body)
    (document.getElementById(seen.id) ?? focusables()[place])?.focus({ preventScroll: true });
}

/** The part of the page that stays where it is: the controls, and a view with new words around what it draws. */
function kept(old, fresh) {
  if (old === controls) return old;
  const live = old?.querySelector(":scope > [data-view]");
  if (!live) return null;
  for (const other of [...old.children]) if (other !== live) other.remove();
  const [before, after] = aside(fresh);
  live.before(...before);
  live.after(...after);
  return old;
}

/** What stands before and after the drawing of a section. */
function aside(section) {
  const parts = [...section.children];
  const at = parts.findIndex((one) => one.dataset.view);
  return [parts.slice(0, at), parts.slice(at + 1)];
}

function focusables() {
  return [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")];
}

/** The text at an address; undefined where nobody answers. */
async function ask(address) {
  try {
    const answer = await fetch(address, { cache: "no-store" });
    return answer.ok ? await answer.text() : null;
  } catch {
    return undefined;
  }
}

async function watch() {
  const began = performance.now();
  const version = await ask("/version");
  if (version === undefined) {
    document.getElementById("watching").textContent = "No longer watched: this is how far it had come.";
    return;
  }
  const page = version && version !== document.documentElement.dataset.version ? await ask("/") : null;
  if (page) fillIn(new DOMParser().parseFromString(page, "text/html"));
  // A page that takes long to make is asked for less often, so that the study has the processor.
  setTimeout(watch, Math.max(WAIT, 4 * (performance.now() - began)));
}

if (document.documentElement.dataset.version !== undefined && location.protocol.startsWith("http")) setTimeout(watch, WAIT);
