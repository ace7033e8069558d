// Names for what the theme leaves without one; what is hidden is not reached by the keyboard, and
// what scrolls is.
const set = (one, name, value) => { if (one.getAttribute(name) !== value) one.setAttribute(name, value) }
const name = () => {
  document.querySelectorAll("input[aria-hidden=true]").forEach((one) => set(one, "tabindex", "-1"))
  document.querySelectorAll(".md-search").forEach((one) => set(one, "aria-label", "Search"))
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((one) => set(one, "tabindex", "0"))
  document.querySelectorAll("nav.md-code__nav").forEach((one, place) => set(one, "aria-label", `Code ${place + 1}`))
}
name()
new MutationObserver(name).observe(document.body, { childList: true, subtree: true })
