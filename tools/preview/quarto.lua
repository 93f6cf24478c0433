-- What Quarto does to a page's Markdown, as far as the pages use it.
local stringify = pandoc.utils.stringify

local function callout(div)
  local kind = table.concat(div.classes, " "):match("callout%-(%w+)")
  if not kind then return nil end
  local title, body = div.attributes.title or (kind:gsub("^%l", string.upper)), div.content
  if not div.attributes.title and body[1] and body[1].t == "Header" then
    title = stringify(body[1])
    body:remove(1)
  end
  local head = pandoc.Div({pandoc.Plain({pandoc.Str(title)})}, {class = "callout-header"})
  local inner = pandoc.Div(body, {class = "callout-body"})
  if div.attributes.collapse == "true" then
    local open = pandoc.RawBlock("html", "<details><summary>" .. title .. "</summary>")
    return pandoc.Div({open, inner, pandoc.RawBlock("html", "</details>")}, {class = "callout callout-" .. kind})
  end
  return pandoc.Div({head, inner}, {class = "callout callout-" .. kind})
end

local function tabset(div)                                  -- every tab is shown, under its name
  if not div.classes:includes("panel-tabset") then return nil end
  return div
end

function Div(div)
  if div.classes:includes("content-hidden") then return {} end
  return callout(div) or tabset(div)
end
